"""The address of the service under test, and the bytes of every request.

The client builds all requests before the test, so that sending one is a single write.
"""

import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loadtest.errors import UsageError
from loadtest.headers import Headers


@dataclass(frozen=True, slots=True)
class Target:
    """Host, port and path prefix of the service, and the headers that it needs."""

    host: str
    port: int
    tls: bool
    host_header: str
    prefix: str
    headers: Headers = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str, headers: Headers | None = None) -> "Target":
        """Parse a base URL. Raises UsageError where it is not http(s)://host[:port][/prefix].

        `headers` go with every request beside the client's own.

        >>> Target.parse("http://127.0.0.1:8000/").port
        8000
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise UsageError(f"--url {url!r} is not a URL ({exc}).") from exc
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url is {url!r}; give it as http://host:port.")
        if parts.query or parts.fragment or parts.username:
            raise UsageError(f"--url {url!r} may have only a host, a port and a path; shorten it.")
        tls = parts.scheme == "https"
        return cls(
            host=parts.hostname,
            port=port if port is not None else (443 if tls else 80),
            tls=tls,
            host_header=parts.netloc,
            prefix=parts.path.rstrip("/"),
            headers=headers or {},
        )


def recommend_request(target: Target, text: str, k: int, effort: str, timeout_ms: float) -> bytes:
    """Return the bytes of one POST /v1/recommend, head and body."""
    body = json.dumps({"query": text, "k": k, "effort": effort}, ensure_ascii=False).encode()
    head = (
        f"POST {target.prefix}/v1/recommend HTTP/1.1\r\n"
        f"Host: {target.host_header}\r\n"
        "User-Agent: astrolabe-loadtest\r\n"
        "Accept: application/json\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"X-Request-Timeout-Ms: {timeout_ms:g}\r\n"
    )
    head += "".join(f"{name}: {value}\r\n" for name, value in target.headers.items()) + "\r\n"
    return head.encode("latin-1") + body
