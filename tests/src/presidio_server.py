"""Presidio's analyzer behind the address its REST service has, for tests: POST /analyze on a free port of loopback.

PyPI has the library only. Nothing is downloaded: an empty spaCy model, and the list of top-level domains that comes
with tldextract. The port is the one line of output; it ends with its standard input."""

import http.server
import json
import os
import sys
import threading

import spacy
import tldextract
from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
from presidio_analyzer.nlp_engine import SpacyNlpEngine

tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())


class Blank(SpacyNlpEngine):
    def load(self):
        self.nlp = {"en": spacy.blank("en")}


registry = RecognizerRegistry()
registry.load_predefined_recognizers(languages=["en"])
registry.remove_recognizer("SpacyRecognizer")
analyzer = AnalyzerEngine(nlp_engine=Blank(), registry=registry, supported_languages=["en"])


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        found = analyzer.analyze(text=asked["text"], language=asked["language"], entities=asked.get("entities"))
        body = json.dumps([one.to_dict() for one in found], default=lambda one: one.to_dict()).encode()
        self.send_response(200 if self.path == "/analyze" else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
