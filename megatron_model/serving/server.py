"""The server: who may ask, over HTTP, and in what form the answer goes out.

A client must know the token; on a loopback address the name that was asked for
must be this machine's, and a page of another site is refused. So neither another user of the
machine nor a page in the user's own browser gets anything.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import select
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from megatron_model.serving.completions import (
    Asked,
    BusyError,
    Completions,
    Piece,
    choice,
    read_request,
)
from megatron_model.util.errors import RequestError

MOST_BYTES = 1 << 20
"""Of a request's body."""
MOST_CONNECTIONS = 64
SILENT_SECONDS = 30.0
"""How long a client may say nothing, or take nothing."""
PAGE = Path(__file__).parent / "page.html"


class RefusedError(Exception):
    """A request that is not done; `status` is HTTP's."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


class Server(ThreadingHTTPServer):
    """Serves one model.

    Args:
        completions: the model.
        host, port: where; port 0 takes a free one.
        token: what a client has to know; empty for nothing, on a loopback address alone.

    Raises:
        RequestError: the port is taken, or there is no such address here.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, completions: Completions, host: str, port: int, token: str) -> None:
        self.completions = completions
        self.token = token
        self.local = is_loopback(host)
        if not token and not self.local:
            raise RequestError(f"{host} is reached from elsewhere: a token is needed there.")
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise RequestError(
                f"Cannot listen on {host}, port {port}: {reason}; take another with --port, or 0 "
                "for any that is free."
            ) from None

    @property
    def port(self) -> int:
        """The port."""
        return int(self.server_address[1])

    @property
    def address(self) -> str:
        """Where it answers."""
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    @property
    def url(self) -> str:
        """Where the page is; the token stands where a browser sends it to nobody."""
        return self.address + (f"#token={self.token}" if self.token else "")

    def server_bind(self) -> None:
        """Bind, without asking a name server for this machine's name as the class above does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.port

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, if there is room for one."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that is gone is no error here."""


class _Handler(BaseHTTPRequestHandler):
    """One request: each connection has one, which bounds how long it can be held."""

    server: Server
    timeout = SILENT_SECONDS
    server_version = "megatron"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """Answer one request."""
        self.close_connection = True
        self.handle_one_request()

    def do_GET(self) -> None:
        """Answer what changes nothing."""
        with self._answered():
            self._check_site()
            path = urlsplit(self.path).path
            if path == "/":
                self._send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
            elif path == "/health":
                self._send_json(200, {"status": "ok"})
            elif path == "/v1/models":
                self._check_token()
                self._send_json(200, {"object": "list", "data": [self._about()]})
            else:
                raise RefusedError(
                    404, "There is nothing here; see /, /v1/models, /v1/completions."
                )

    def do_POST(self) -> None:
        """Write text."""
        with self._answered():
            self._check_site()
            self._check_token()
            if urlsplit(self.path).path != "/v1/completions":
                raise RefusedError(404, "Only /v1/completions writes text.")
            asked = read_request(self._body())
            if asked.stream:
                self._stream(asked)
            else:
                self._whole(asked)

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """Turn what goes wrong into an answer, in OpenAI's form."""
        try:
            yield
        except RefusedError as refused:
            self._send_error(refused.status, str(refused))
        except RequestError as error:
            self._send_error(400, str(error))
        except BusyError:
            self._send_error(429, "Too many texts wait for their turn; ask again later.")
        except (OSError, ValueError):  # the client is gone
            pass

    def _check_site(self) -> None:
        """Refuse what a page of another site asks for.

        Raises:
            RefusedError: by its name or origin.
        """
        asked = self.headers.get("Host", "")
        if self.server.local and not is_loopback(urlsplit(f"//{asked}").hostname or ""):
            raise RefusedError(403, "This machine is called localhost or 127.0.0.1 here.")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != asked:
            raise RefusedError(403, "Pages of other sites may not ask.")

    def _check_token(self) -> None:
        given = self.headers.get("Authorization", "")
        wanted = f"Bearer {self.server.token}"
        if self.server.token and not hmac.compare_digest(given.encode(), wanted.encode()):
            raise RefusedError(
                401, "The token is missing or wrong; it stands in the address of the page."
            )

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal():
            raise RefusedError(411, "Content-Length is needed.")
        if len(length) > 9 or int(length) > MOST_BYTES:
            raise RefusedError(413, f"The body is longer than {MOST_BYTES:,} bytes.")
        return self.rfile.read(int(length))

    def _about(self) -> dict[str, Any]:
        return {"id": self.server.completions.name, "object": "model", "owned_by": "you"}

    def _frame(self) -> dict[str, Any]:
        """Return what every part of an answer has."""
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.server.completions.name,
        }

    def _whole(self, asked: Asked) -> None:
        """Answer with the texts once they are written, unless the client is gone by then."""
        pieces: dict[int, Piece] = {}
        for piece in self.server.completions.write(asked):
            before = pieces.get(piece.number, Piece(piece.number, "", [], ""))
            pieces[piece.number] = Piece(
                piece.number, before.text + piece.text, before.scores + piece.scores, piece.finish
            )
            if self._gone():
                return
        prompts = asked.prompts
        read = sum(map(len, prompts))
        written = sum(len(piece.text) for piece in pieces.values())
        if asked.echo:
            written -= (asked.n or 1) * read
        usage = {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }
        choices = [choice(piece, asked, 0) for piece in pieces.values()]
        self._send_json(200, {**self._frame(), "choices": choices, "usage": usage})

    def _stream(self, asked: Asked) -> None:
        """Answer with the texts as they are written, as server-sent events."""
        pieces = self.server.completions.write(asked)
        with contextlib.closing(pieces):
            first = next(pieces)  # what is wrong with the request shows before anything is sent
            frame, offsets = self._frame(), {first.number: 0}
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Connection", "close")
            self.end_headers()
            for piece in _again(first, pieces):
                offset = offsets.get(piece.number, 0)
                data = {**frame, "choices": [choice(piece, asked, offset)]}
                offsets[piece.number] = offset + len(piece.scores)
                self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
                self.wfile.flush()
                if self._gone():
                    return
            self.wfile.write(b"data: [DONE]\n\n")

    def _gone(self) -> bool:
        """Whether the client has hung up: it has nothing more to say to us."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _send_error(self, status: int, reason: str) -> None:
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": reason, "type": kind, "param": None, "code": None}
        with contextlib.suppress(OSError):
            self._send_json(status, {"error": error})

    def _send_json(self, status: int, found: object) -> None:
        self._send(status, json.dumps(found).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header(
            "Content-Security-Policy",
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that HTTP itself does not allow in the same form as all others."""
        self._send_error(int(code), explain or message or "The request makes no sense.")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what is asked is nobody's business."""


def _again(first: Piece, rest: Iterator[Piece]) -> Iterator[Piece]:
    yield first
    yield from rest
