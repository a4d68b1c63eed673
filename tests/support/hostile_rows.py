# ruff: noqa: E501  (a row is a line, however long)
"""Hostile and unusual clients of HTTP, one row each: the next one is one more line."""

from tests.support.hostile_http import MANY, AwaitAnswer, Endless, HalfClose, case
from tests.support.raw_http import RECOMMEND, recommend

A_MOMENT_S = 0.05
"""Clocks under test; a client here that is to be cut waits hardly longer than this."""

LIVEZ = b"GET /livez HTTP/1.1\r\nhost: x\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
QUERY = b'{"query": "a"}'
MALFORMED = (400, "malformed_request")
TOO_LARGE = (413, "payload_too_large")
HEADERS = (431, "headers_too_large")
TOO_LATE = (504, "deadline_exceeded")
NO_KEY = (401, "unauthorized")

ENDLESS = Endless(b"a" * MANY)
TRICKLE = Endless(b"a", every_s=A_MOMENT_S / 10)
SHORT = {"request_timeout_ms": 50, "max_body_bytes": 20_000, "max_header_bytes": 2048}
KEY = SHORT | {"api_key": "secret"}
SLOW = {"header_timeout_s": A_MOMENT_S}


def framed(*headers: bytes, version: bytes = b"1.1", target: bytes = b"/livez") -> bytes:
    """A GET with these header lines and no others."""
    return b"GET %s HTTP/%s\r\n" % (target, version) + b"".join(
        header + b"\r\n" for header in (*headers, b"")
    )


ENDLESS_ONES = [
    case("a target", b"GET /", ENDLESS, gets=HEADERS),
    case("a header", LIVEZ + b"x: ", ENDLESS, gets=HEADERS),
    case("blank lines", Endless(b"\r\n" * MANY), gets=HEADERS),
    case("blank lines behind an answer", LIVEZ + b"\r\n", Endless(b"\r\n" * 99), gets=[200, HEADERS]),
    case("a trailer", RECOMMEND + CHUNKED + b"0\r\nx-t: ", ENDLESS, gets=HEADERS),
    case("trailers", RECOMMEND + CHUNKED + b"0\r\n", Endless(b"a: b\r\n" * 99), gets=HEADERS),
    case("a trailer of a GET", LIVEZ + CHUNKED + b"0\r\nx-t: ", AwaitAnswer(), ENDLESS, gets=200),
    case("an extension", RECOMMEND + CHUNKED + b"5;a=", ENDLESS, gets=HEADERS),
    case("a chunk's size", RECOMMEND + CHUNKED, Endless(b"0" * MANY), gets=HEADERS),
    case("tiny chunks", RECOMMEND + CHUNKED, Endless(b"1\r\na\r\n" * 999), gets=HEADERS),
    case("chunks", RECOMMEND + CHUNKED, Endless(b"800\r\n" + b"a" * 2048 + b"\r\n"), gets=TOO_LARGE),
    case("a body", RECOMMEND + b"content-length: 999999999\r\n\r\n", ENDLESS, gets=TOO_LARGE),
    case("a body of a GET", LIVEZ + b"content-length: 19999\r\n\r\n", AwaitAnswer(), ENDLESS, gets=200),
    case("a body that waits", RECOMMEND + b"expect: 100-continue\r\ncontent-length: 30000\r\n\r\n", gets=TOO_LARGE),
    case("a body without a key", RECOMMEND + CHUNKED, ENDLESS, gets=NO_KEY, settings=KEY),
    case("what is no HTTP", ENDLESS, gets=MALFORMED),
]  # fmt: skip

SLOW_ONES = [
    case("nothing", gets=[], settings=SLOW),
    case("a target", b"GET /", TRICKLE, gets=[], settings=SLOW),
    case("a header", LIVEZ + b"x: ", TRICKLE, gets=[], settings=SLOW),
    case("blank lines", Endless(b"\r\n", every_s=A_MOMENT_S / 10), gets=[], settings=SLOW),
    case("a second head", LIVEZ + b"\r\n", AwaitAnswer(), b"GE", gets=200, settings=SLOW),
    case("blank lines behind an answer", LIVEZ + b"\r\n", AwaitAnswer(), Endless(b"\r\n", every_s=0.01), gets=200, settings={"keep_alive_s": 0}),
    case("no body", RECOMMEND + b"content-length: 99\r\n\r\n{", gets=TOO_LATE),
    case("a body", RECOMMEND + b"content-length: 9999\r\n\r\n", TRICKLE, gets=TOO_LATE),
    case("chunks", RECOMMEND + CHUNKED + b"999\r\n", TRICKLE, gets=TOO_LATE),
    case("a trailer", RECOMMEND + CHUNKED + b"0\r\nx: ", TRICKLE, gets=TOO_LATE),
    case("a body without a key", RECOMMEND + CHUNKED + b"999\r\n", TRICKLE, gets=NO_KEY, settings=KEY),
    case("a body that is too large", RECOMMEND + b"content-length: 99999\r\n\r\n", TRICKLE, gets=TOO_LARGE),
    case("a body of no route", b"POST /none HTTP/1.1\r\nhost: x\r\n" + CHUNKED, TRICKLE, gets=(404, "not_found")),
    case("a body of a GET", LIVEZ + b"content-length: 99\r\n\r\n", TRICKLE, gets=200),
]  # fmt: skip

BROKEN_ONES = [
    case("no Host", framed(), gets=MALFORMED, detail="0 Host headers"),
    case("two Hosts", framed(b"host: x", b"host: x"), gets=MALFORMED, detail="2 Host headers"),
    case("a Host that is none", framed(b"host: a b"), gets=MALFORMED, detail="host:port"),
    case("a Host of an attack", framed(b"host: x/../y"), gets=MALFORMED, detail="host:port"),
    case("HTTP/2 by its line", framed(b"host: x", version=b"2.0"), gets=MALFORMED, detail="HTTP/1.1"),
    case("HTTP/2 by its preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", gets=MALFORMED, detail="HTTP/1.1"),
    case("no version", b"GET /livez\r\nconnection: upgrade\r\nupgrade: h2c\r\nhost: x\r\n\r\n", gets=MALFORMED, detail="HTTP/1.1"),
    case("HTTP/0.9", framed(b"host: x", version=b"0.9"), gets=MALFORMED, detail="HTTP/1.1"),
    case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", gets=MALFORMED, detail="HTTP/1.1"),
    case("a raw byte in the target", framed(b"host: x", target=b"/caf\xc3\xa9"), gets=MALFORMED, detail="percent-encode"),
    case("a raw byte in the query", framed(b"host: x", target=b"/v1/recommend?q=\xfc"), gets=MALFORMED, detail="percent-encode"),
    case("a blank in the target", framed(b"host: x", target=b"/a b"), gets=MALFORMED),
    case("CONNECT", b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", gets=MALFORMED, detail="no proxy"),
    case("a folded header", framed(b"host: x", b"a: b", b" c"), gets=MALFORMED),
    case("a blank before the colon", framed(b"host : x"), gets=MALFORMED),
    case("a line feed alone", b"GET /livez HTTP/1.1\nhost: x\n\n", gets=MALFORMED),
    case("two lengths", framed(b"host: x", b"content-length: 1", b"content-length: 1"), gets=MALFORMED),
    case("a length and chunks", framed(b"host: x", b"content-length: 1", b"transfer-encoding: chunked"), gets=MALFORMED),
    case("a length that is none", framed(b"host: x", b"content-length: +1"), gets=MALFORMED),
    case("a coding before chunks", framed(b"host: x", b"transfer-encoding: gzip, chunked"), gets=MALFORMED, detail="chunked"),
    case("two codings", framed(b"host: x", b"transfer-encoding: gzip", b"transfer-encoding: chunked"), gets=MALFORMED, detail="chunked"),
    case("broken chunks", RECOMMEND + CHUNKED + b"zz\r\n", gets=MALFORMED, detail="chunk size"),
    case("broken chunks, later", RECOMMEND + CHUNKED, b"3\r\n{", b'"abc\r\n', gets=MALFORMED),
    case("broken chunks of a GET", LIVEZ + CHUNKED + b"zz\r\n", gets=MALFORMED),
    case("garbage behind a request", LIVEZ + b"\r\nGARBAGE\r\n\r\n", gets=[200, MALFORMED]),
    case("garbage behind a query", recommend() + b"\x00", gets=[200, MALFORMED]),
    case("garbage behind an answer", LIVEZ + b"\r\n", AwaitAnswer(), b"\x00", gets=[200, MALFORMED]),
    case("garbage behind the last request", LIVEZ + b"connection: close\r\n\r\nGARBAGE", gets=200),
    case("half a head", LIVEZ, HalfClose(), gets=MALFORMED, detail="headers"),
    case("half a body", RECOMMEND + b"content-length: 99\r\n\r\n{", HalfClose(), gets=MALFORMED, detail="its body"),
    case("half a chunk", RECOMMEND + CHUNKED + b"9\r\n{", HalfClose(), gets=MALFORMED, detail="its body"),
]  # fmt: skip

SOUND_ONES = [
    case("HTTP/1.0 without Host", framed(version=b"1.0"), gets=200),
    case("half-closed", recommend(), HalfClose(), gets=200),
    case("half-closed behind two", recommend() + LIVEZ + b"\r\n", HalfClose(), gets=[200, 200]),
    case("half-closed while idle", LIVEZ + b"\r\n", AwaitAnswer(), HalfClose(), gets=200),
    case("h2c on offer", RECOMMEND + b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAM\r\ncontent-length: 14\r\n\r\n", QUERY, gets=200, kept=True),
    case("h2c on offer, in one piece", recommend("a", b"connection: upgrade", b"upgrade: h2c") * 3, gets=[200] * 3, kept=True),
    case("h2c on offer, then close", recommend("a", b"connection: upgrade, close", b"upgrade: h2c"), gets=200),
    case("h2c on offer, chunked", RECOMMEND + b"connection: upgrade\r\nupgrade: h2c\r\n" + CHUNKED, b"e\r\n" + QUERY + b"\r\n0\r\n\r\n", gets=200, kept=True),
    case("h2c on offer by HTTP/1.0", recommend("a", b"connection: upgrade", b"upgrade: h2c", version=b"1.0"), gets=200),
    case("a websocket", LIVEZ + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n", gets=200, kept=True),
    case("chunks with extensions and trailers", RECOMMEND + CHUNKED + b"e;a=b\r\n" + QUERY + b"\r\n0\r\nx-t: y\r\n\r\n", gets=200, kept=True),
    case("blank lines before a request", b"\r\n\r\n" + LIVEZ + b"\r\n", gets=200, kept=True),
    case("thousands of requests at once", (LIVEZ + b"\r\n") * 3000, gets=[200] * 3000, kept=True),
    case("many queries at once", recommend() * 300, gets=[200] * 300, kept=True),
    case("a head in bytes", *(LIVEZ[i : i + 1] for i in range(len(LIVEZ))), b"\r\n", gets=200, kept=True),
]  # fmt: skip
