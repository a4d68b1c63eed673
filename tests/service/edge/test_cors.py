import httpx
import pytest

from service.edge.cors import with_cors
from tests.support.fakes import running

pytestmark = pytest.mark.anyio

PAGE = "https://app.example"


async def asked(origins: list[str], method: str, origin: str) -> httpx.Response:
    async with running(api_key="sesame") as service:
        app = with_cors(service.app, origins)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"origin": origin}
            if method == "OPTIONS":
                headers |= {
                    "access-control-request-method": "POST",
                    "access-control-request-headers": "authorization, content-type",
                }
            return await client.request(method, "/v1/info", headers=headers)


async def test_a_preflight_of_a_listed_origin_needs_no_key() -> None:
    answer = await asked([PAGE], "OPTIONS", PAGE)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in answer.headers


async def test_errors_can_be_read_by_the_page_too() -> None:
    answer = await asked([PAGE], "GET", PAGE)
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example", PAGE + ".evil"])
async def test_other_origins_get_no_permission(origin: str) -> None:
    for method in ("OPTIONS", "GET"):
        answer = await asked([PAGE], method, origin)
        assert "access-control-allow-origin" not in answer.headers


async def test_without_origins_nothing_is_added() -> None:
    answer = await asked([], "GET", PAGE)
    assert not [name for name in answer.headers if name.startswith("access-control")]
