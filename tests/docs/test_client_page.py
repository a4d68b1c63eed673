"""The examples of docs/client.md, run as they stand against a real service."""

import doctest
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

import service.client
from tests.support.processes import service_process

PAGE = Path(__file__).resolve().parents[2] / "docs" / "client.md"
APPLIED = {"applied": 1, "sequence": 1}


class Redirected(httpx.HTTPTransport):
    """Sends what is meant for port 8000 to the port that the service of this test has."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return super().handle_request(request)


class RedirectedAsync(httpx.AsyncHTTPTransport):
    """The same for asyncio."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return await super().handle_async_request(request)


@pytest.fixture
def port(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    options = ("--admin-key", "sesame", "--state-dir", str(tmp_path), "--log-requests", "none")
    with service_process(tiny_bundle, *options) as process:
        for name, kind in (("Client", Redirected), ("AsyncClient", RedirectedAsync)):
            client = getattr(service.client, name)
            monkeypatch.setattr(service.client, name, partial(client, transport=kind(process.port)))
        yield process.port


@pytest.mark.usefixtures("port")
def test_examples_of_the_client_page_answer_as_the_page_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    page = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert len(page.examples) > 20
    said: list[str] = []
    doctest.DocTestRunner().run(page, out=said.append)
    assert not said, "".join(said)
