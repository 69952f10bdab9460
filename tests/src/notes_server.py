"""An MCP server on standard input and output, as somebody may have one: two tools and a secret in its environment."""

import json
import os
import sys

TOOLS = [
    {
        "name": "read_note",
        "description": "Reads a note.",
        "inputSchema": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
        },
    },
    {
        "name": "send_note",
        "description": "Sends a note to somebody.",
        "inputSchema": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "to": {"type": "string"}},
            "required": ["name", "to"],
        },
    },
]


def answer(request):
    method, params = request["method"], request.get("params") or {}
    if method == "initialize":
        return {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "notes", "version": "1"},
        }
    if method == "ping":
        return {}
    if method == "tools/list":
        return {"tools": TOOLS}
    if method == "tools/call":
        key = os.environ.get("NOTES_KEY", "nobody's")
        text = f"{params['name']} {params['arguments']['name']} with the key {len(key)} letters long"
        return {"content": [{"type": "text", "text": text}]}
    return None


for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    result = answer(request)
    reply = {"jsonrpc": "2.0", "id": request["id"]}
    if result is None:
        reply["error"] = {"code": -32601, "message": "not served"}
    else:
        reply["result"] = result
    print(json.dumps(reply), flush=True)
