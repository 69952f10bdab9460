"""The server of NeMo Guardrails on a free port of loopback, for tests; its own command listens everywhere.

The folder of its configurations is the argument. The port is the one line of output; it ends with its standard
input. It sends no statistics."""

import os
import socket
import sys
import threading

os.environ["NEMO_GUARDRAILS_NO_USAGE_STATS"] = "1"
os.environ["DO_NOT_TRACK"] = "1"

import uvicorn
from nemoguardrails.server import api

api.app.rails_config_path = sys.argv[1]
api.app.disable_chat_ui = True
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
# Who connects before it is ready waits.
listener.listen(128)
print(listener.getsockname()[1], flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
uvicorn.Server(uvicorn.Config(api.app, log_level="critical")).run(sockets=[listener])
