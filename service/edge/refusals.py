"""Refusals: what is wrong with bytes that are no request, and the bytes of the answer."""

import functools
import logging
import re
from http import HTTPStatus

import httptools

from service.errors import AstrolabeError, MalformedRequest
from service.gate.cors import OriginHeaders
from service.gate.problems import problem_body, problem_headers

log = logging.getLogger(__name__)

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")  # RFC 3986, 3.2.2, and a port


def framing_error(
    version: str, hosts: list[bytes], codings: list[bytes]
) -> MalformedRequest | None:
    """Why a head is refused, by its version and the values of two headers (RFC 9112).

    `codings` are lower-case. Sections 2.3, 3.2 and 6.1; None if the head is sound.
    """
    if version not in ("1.1", "1.0"):
        return MalformedRequest(f"the request is HTTP/{version}: send HTTP/1.1")
    if len(hosts) != 1 and (hosts or version == "1.1"):
        return MalformedRequest(f"the request has {len(hosts)} Host headers: send one")
    if hosts and not _HOST.fullmatch(hosts[0]):
        return MalformedRequest("the Host header is no host name: send host or host:port")
    if codings and codings != [b"chunked"]:
        return MalformedRequest("a Transfer-Encoding other than chunked is not understood")
    return None


def parse_error(exc: httptools.HttpParserError) -> MalformedRequest:
    """What is wrong with bytes that the parser does not take, and what to send instead."""
    cause = exc.__context__ if isinstance(exc, httptools.HttpParserCallbackError) else exc
    if isinstance(cause, httptools.HttpParserInvalidURLError):
        return MalformedRequest(
            "the request's target holds a byte that no URL may hold: percent-encode it as UTF-8, "
            "so that é becomes %C3%A9 and a blank %20"
        )
    if isinstance(cause, httptools.HttpParserInvalidMethodError):
        return MalformedRequest("the request begins with no method of HTTP: send HTTP/1.1")
    if cause is not exc:
        log.error("unhandled exception", exc_info=cause)
        return MalformedRequest("the request cannot be read")
    return MalformedRequest(f"the request is not HTTP/1.1 ({exc}): send HTTP/1.1")


def refusal_bytes(
    error: AstrolabeError, keep_alive: bool, request_id: bytes, origin_headers: OriginHeaders
) -> bytes:
    """The bytes of a response that holds the error as a problem document (RFC 9457)."""
    body = problem_body(error, request_id.decode())
    phrase = HTTPStatus(error.status).phrase.encode()
    head = b"HTTP/1.1 %d %s\r\n" % (error.status, phrase)
    headers = dict(problem_headers(error, body)) | dict(origin_headers)
    headers[b"x-request-id"] = request_id
    if not keep_alive:
        headers[b"connection"] = b"close"
    lines = [b"%s: %s\r\n" % header for header in headers.items()]
    return b"".join([head, *lines, b"\r\n", body])


cached_refusal_bytes = functools.lru_cache(maxsize=16)(refusal_bytes)
"""`Shedding` refuses many requests with one error, so their answers differ only in the request id:
two kinds of refusal, kept connections and others, and a few origins make 16."""
