"""An SMTP server on a free port of loopback: writes each letter into a folder, and ends with its standard input."""

import asyncio
import ssl
import sys
from pathlib import Path

from aiosmtpd.smtp import SMTP, AuthResult

folder = Path(sys.argv[1])
certificate = sys.argv[2:]


class Keep:
    count = 0

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody@"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.count += 1
        head = " ".join(envelope.rcpt_tos).encode() + b"\n"
        (folder / f"{self.count:04}").write_bytes(head + envelope.content)
        return "250 kept"


def authenticate(server, session, envelope, mechanism, data):
    return AuthResult(success=data.login == b"support" and data.password == b"secret")


options = {}
if certificate:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    options = {
        "tls_context": context,
        "require_starttls": True,
        "authenticator": authenticate,
        "auth_required": True,
    }


async def serve():
    loop = asyncio.get_running_loop()
    keep = Keep()
    server = await loop.create_server(lambda: SMTP(keep, hostname="localhost", **options), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


asyncio.run(serve())
