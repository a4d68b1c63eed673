import json
import logging
from typing import Any

import httpx
import pytest

from service.errors import Forbidden, NotFound, RateLimited, Unauthorized
from service.gate.guard import Guard, Keyring
from service.observe.logs import JsonFormatter
from tests.support.fakes import FakeClock, fake_settings, running

pytestmark = pytest.mark.anyio

KEYS = {"api_key": "zero", "api_keys": "web=one,batch=two"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def scope(path: str, method: str = "GET", client: str = "10.0.0.1", port: int = 8000) -> Any:
    return {"path": path, "method": method, "client": (client, 5), "server": ("h", port)}


def admit(guard: Guard, asked: Any, authorization: bytes) -> str:
    """As the gate does it; the name of the key."""
    name = guard.name_of(authorization)
    guard.admit(asked, name)
    return name


def test_a_key_is_known_by_its_name_and_kept_only_as_a_hash() -> None:
    ring = Keyring({"web": "one", "batch": "two"})
    assert ring.name_of(b"Bearer two") == "batch"
    assert ring.name_of(b"bearer  one ") == "web"
    for wrong in (b"", b"Bearer ", b"Bearer three", b"Basic one", b"one", b"Bearer one two"):
        assert ring.name_of(wrong) is None
    assert "one" not in repr(vars(ring))


@pytest.mark.parametrize(("key", "status"), [("zero", 200), ("two", 200), ("three", 401)])
async def test_any_named_key_opens(key: str, status: int) -> None:
    async with running(**KEYS) as service:
        answer = await service.client.get("/v1/info", headers=bearer(key))
    assert answer.status_code == status


async def test_the_name_goes_to_logs_and_metrics_and_the_key_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(log_requests="all", **KEYS) as service:
        await service.client.get("/v1/info", headers=bearer("one"))
        await service.client.get("/v1/info", headers=bearer("zero"))
        await service.client.get("/v1/info", headers=bearer("three"))
        assert await service.metric('astrolabe_key_requests_total{key="web"}') == 1
        assert await service.metric('astrolabe_key_requests_total{key="default"}') == 1
        page = service.app.serving.telemetry.render().decode()
    lines = [JsonFormatter().format(r) for r in caplog.records if r.message == "request"]
    assert [json.loads(line).get("key") for line in lines] == ["web", "default", None]
    assert "three" not in "".join(lines)
    assert page.count("key_requests_total{") == 2


async def test_what_needs_the_admin_key_is_off_without_one() -> None:
    async with running() as service:
        answer = await service.client.post("/admin/anything")
        labels = await service.client.post("/v1/labels", json={})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "ASTROLABE_ADMIN_KEY" in answer.json()["detail"]
    assert labels.status_code == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_changes_to_labels_need_the_admin_key_and_reading_does_not(method: str) -> None:
    guard = Guard(fake_settings(admin_key="boss", **KEYS), FakeClock())
    assert admit(guard, scope("/v1/labels/a", method), b"Bearer boss") == "admin"
    with pytest.raises(Forbidden, match="another caller's"):
        admit(guard, scope("/v1/labels/a", method), b"Bearer one")
    with pytest.raises(Unauthorized):
        admit(guard, scope("/v1/labels/a", method), b"Bearer guess")
    assert admit(guard, scope("/v1/labels/a"), b"Bearer one") == "web"


def test_the_admin_key_alone_leaves_other_routes_open() -> None:
    guard = Guard(fake_settings(admin_key="boss"), FakeClock())
    assert admit(guard, scope("/v1/info"), b"") == ""
    with pytest.raises(Unauthorized):
        admit(guard, scope("/admin/x"), b"")


def test_with_an_admin_port_each_port_answers_its_own() -> None:
    guard = Guard(fake_settings(admin_key="boss", admin_port=9000), FakeClock())
    assert admit(guard, scope("/admin/x", port=9000), b"Bearer boss") == "admin"
    assert admit(guard, scope("/v1/info", port=8000), b"") == ""
    for path, port in (("/admin/x", 8000), ("/v1/info", 9000), ("/docs", 9000)):
        with pytest.raises(NotFound, match="on this port"):
            admit(guard, scope(path, port=port), b"Bearer boss")
    for port in (8000, 9000):
        assert admit(guard, scope("/livez", port=port), b"") == ""


@pytest.mark.parametrize("path", ["/admin//x", "/v1/labelsx", "/v1/labels%2fa", "/v1/labels/../a"])
def test_odd_spellings_of_a_change_still_need_the_admin_key(path: str) -> None:
    guard = Guard(fake_settings(), FakeClock())
    with pytest.raises(Forbidden):
        admit(guard, scope(path, "DELETE"), b"")


async def test_more_than_the_rate_is_429_with_the_time_to_wait() -> None:
    clock = FakeClock()
    async with running(clock=clock, rate_limit_per_s=0.25, rate_burst=2) as service:
        assert (await service.recommend({"query": "a"})).status_code == 200
        assert (await service.client.get("/v1/info")).status_code == 200
        answer = await service.recommend({"query": "a"})
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
        assert answer.headers["retry-after"] == "4"
        assert (await service.client.get("/livez")).status_code == 200
        assert await service.metric('astrolabe_rejected_total{reason="rate_limited"}') == 1
        clock.advance(4)
        assert (await service.recommend({"query": "a"})).status_code == 200


def test_each_key_has_a_rate_of_its_own_wherever_it_comes_from() -> None:
    guard = Guard(fake_settings(rate_limit_per_s=1, rate_burst=1, **KEYS), FakeClock())
    admit(guard, scope("/v1/info", client="10.0.0.1"), b"Bearer one")
    admit(guard, scope("/v1/info", client="10.0.0.1"), b"Bearer two")
    with pytest.raises(RateLimited):
        admit(guard, scope("/v1/info", client="10.0.0.2"), b"Bearer one")


async def test_refused_requests_count_for_the_key_that_made_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with running(rate_limit_per_s=1, rate_burst=1, clock=FakeClock(), **KEYS) as service:
        for _ in range(3):
            await service.client.get("/v1/info", headers=bearer("one"))
        await service.client.post("/admin/x", headers=bearer("two"))
        assert await service.metric('astrolabe_key_requests_total{key="web"}') == 3
    lines = [r.fields for r in caplog.records if r.message == "request"]  # type: ignore[attr-defined]
    asked = [(line["key"], line["status"]) for line in lines]
    # One line a second for refusals of one kind.
    assert asked == [("web", 429), ("batch", 403)]


def test_guessing_keys_is_limited_by_address() -> None:
    guard = Guard(fake_settings(rate_limit_per_s=1, rate_burst=1, **KEYS), FakeClock())
    with pytest.raises(Unauthorized):
        admit(guard, scope("/v1/info"), b"Bearer guess")
    with pytest.raises(RateLimited):
        admit(guard, scope("/v1/info"), b"Bearer guess again")


def test_addresses_of_one_customer_count_as_one() -> None:
    guard = Guard(fake_settings(rate_limit_per_s=1, rate_burst=1), FakeClock())
    admit(guard, scope("/v1/info", client="2001:db8:1:2::1"), b"")
    with pytest.raises(RateLimited):
        admit(guard, scope("/v1/info", client="2001:db8:1:2:ffff::9"), b"")
    admit(guard, scope("/v1/info", client="2001:db8:1:3::1"), b"")


async def test_without_keys_or_rates_nothing_is_asked_of_anyone() -> None:
    async with running() as service:
        assert service.app.guard.idle
        answer: httpx.Response = await service.client.get("/v1/info", headers=bearer("any"))
    assert answer.status_code == 200
