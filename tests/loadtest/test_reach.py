"""Each cause of a connection that fails has a sentence of its own."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import trustme

from loadtest.errors import Unreachable
from loadtest.reach import check_reachable
from loadtest.target import Target
from tests.support.fake_service import FakeService, answer, fake_service, refused_url


def tls(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@contextmanager
def at(url: str) -> Iterator[str]:
    yield url


@contextmanager
def over(scheme: str, service: AbstractContextManager[FakeService]) -> Iterator[str]:
    """The address of a service, under this scheme whatever it speaks."""
    with service as running:
        yield f"{scheme}://{running.url.partition('://')[2]}"


@contextmanager
def says(scheme: str, reply: bytes) -> Iterator[str]:
    """A server that sends these bytes to everybody once they have sent some, and hangs up."""

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(4096)
                client.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"

CAUSES: dict[str, tuple[Callable[[], AbstractContextManager[str]], str]] = {
    "a dead port": (lambda: at(refused_url()), "Nothing listens on 127.0.0.1:"),
    "an unknown name": (lambda: at("http://nobody.invalid"), "nobody.invalid is not known"),
    "a name that is none": (lambda: at("http://a..b"), "a..b is not known"),
    "a self-signed certificate": (
        lambda: over("https", fake_service(tls=tls(trustme.CA()))),
        "is not trusted .*SSL_CERT_FILE",
    ),
    "http on a port of TLS": (
        lambda: over("http", fake_service(tls=tls(trustme.CA()))),
        "speaks TLS and --url does not: write https://",
    ),
    "https on a plain port that answers": (
        lambda: says("https", BAD_REQUEST),
        "does not speak TLS: write http://",
    ),
    "https on a plain port that hangs up": (
        lambda: says("https", b""),
        "does not speak TLS: write http://",
    ),
    "something that is not HTTP": (lambda: says("http", b"220 mail\r\n"), "not answer in HTTP"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_a_sentence_of_its_own(cause: str, monkeypatch: pytest.MonkeyPatch):
    make, words = CAUSES[cause]
    if "name" in cause:  # a test asks no name server
        monkeypatch.setattr(socket, "getaddrinfo", no_name)
    with make() as url, pytest.raises(Unreachable, match=words):
        check_reachable(Target.parse(url))


def no_name(host: str, *_: object, **__: object) -> None:
    host.encode("idna")
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_a_server_that_waits_for_more_than_a_handshake_is_named():
    with over("https", fake_service()) as url, pytest.raises(Unreachable, match="TLS handshake"):
        check_reachable(Target.parse(url), timeout_s=0.2)


@pytest.mark.parametrize("status", [200, 401, 404, 503])
def test_any_answer_in_http_will_do(status: int):
    with says("http", answer(status)) as url:
        check_reachable(Target.parse(url))


def test_a_trusted_certificate_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with over("https", fake_service(tls=tls(authority))) as url:
        check_reachable(Target.parse(url))
    with (
        over("https", fake_service(tls=tls(authority, "another.example"))) as url,
        pytest.raises(Unreachable, match="not trusted"),
    ):
        check_reachable(Target.parse(url))
