"""The smallest server that answers the API's shape, to learn what the client itself can sustain.

`python -m loadtest.responder 127.0.0.1` prints its port and serves until its parent ends. It
parses only as much HTTP as the client sends, and does no work per query.
"""

from loadtest.child import exit_with_parent

if __name__ == "__main__":
    exit_with_parent()  # the imports below take their time

import asyncio
import sys
from typing import cast

import httptools
import uvloop

_BODY = (
    b'{"results":[{"labels":[{"id":"0","text":"a label","score":0.5}],"truncated":false}],'
    b'"bundle_id":"responder","effort":"balanced","score_kind":"logit"}'
)
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nServer-Timing: total;dur=0\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Responder(asyncio.Protocol):
    """Answers every complete request with the same bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: a client connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Asyncio: bytes of a request."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Parser: one request is whole."""
        self._transport.write(_ANSWER)


async def serve(host: str) -> None:
    """Serve on a free port, announcing it on standard output."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Responder, host, 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
