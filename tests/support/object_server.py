"""A web server of objects that can break each of them in its own way.

A case says what happens to requests of an object: a list of `Turn`s, the last of which goes on.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Turn:
    """One answer: its status, and the body in place of the object's own."""

    status: int = 200
    body: bytes | None = None
    cut_at: int | None = None
    """Bytes of the body after which the connection closes."""


@dataclass
class ObjectServer:
    """Serves the files of a folder. `turns` maps a path's last part to its turns."""

    folder: Path
    url: str = ""
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    requests: Counter = field(default_factory=Counter)
    sent: Counter = field(default_factory=Counter)

    def turn(self, name: str) -> Turn:
        turns = self.turns.get(name)
        if not turns:
            return Turn()
        return turns.pop(0) if len(turns) > 1 else turns[0]


@contextlib.contextmanager
def object_server(folder: Path, turns: Mapping[str, list[Turn]] = {}) -> Iterator[ObjectServer]:
    served = ObjectServer(folder, turns=dict(turns))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            name = self.path.rpartition("/")[2]
            served.requests[name] += 1
            turn = served.turn(name)
            path = served.folder / self.path.lstrip("/")
            if turn.status != 200 or not path.is_file():
                return self._answer(turn.status if turn.status != 200 else 404, b"")
            body = path.read_bytes() if turn.body is None else turn.body
            status, first = 200, 0
            if (wanted := self.headers.get("range")) is not None:
                first = int(wanted.removeprefix("bytes=").split("-")[0])
                status = 206
            return self._answer(status, body, first, turn.cut_at)

        def _answer(self, status, body, first=0, cut_at=None):
            part = body[first:]
            self.send_response(status)
            self.send_header("content-length", str(len(part)))
            self.send_header("last-modified", "Tue, 01 Dec 2026 08:00:00 GMT")
            if status == 206:
                self.send_header("content-range", f"bytes {first}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            sent = part if cut_at is None else part[: max(0, cut_at - first)]
            served.sent[self.path.rpartition("/")[2]] += len(sent)
            self.wfile.write(sent)
            self.close_connection = self.close_connection or len(sent) < len(part)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
