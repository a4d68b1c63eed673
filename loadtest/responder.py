"""A minimal server that answers every query with the same bytes, to measure the client's ceiling.

`python -m loadtest.responder 127.0.0.1` prints its port and serves until its parent ends. The bytes
have the form of the API's answers. The server does no work for a query but to parse its HTTP.
"""

from loadtest.child import exit_with_parent

if __name__ == "__main__":
    exit_with_parent()  # before the imports below, which are slow

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
        """Make a parser; asyncio calls this for every new connection."""
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Parse bytes of a request; asyncio calls this."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Answer; httptools calls this when a request is whole."""
        self._transport.write(_ANSWER)


async def serve(host: str) -> None:
    """Serve on a free port and print the port on standard output."""
    loop = asyncio.get_running_loop()
    # The backlog lets the client open all its connections at once; 4,096 is Linux's own limit.
    server = await loop.create_server(Responder, host, 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
