"""The page and its files as HTTP sees them; tests/service/ui opens them in a browser."""

import re

import pytest

from tests.support.fakes import running

pytestmark = pytest.mark.anyio


def parts(page: str) -> list[str]:
    return ["/" + path for path in re.findall(r'(?:src|href)="(ui/[^"]+)"', page)]


async def test_page_and_files_are_served_with_their_types() -> None:
    async with running() as service:
        page = await service.client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        found = {path: await service.client.get(path) for path in parts(page.text)}
    assert {path.rpartition(".")[2] for path in found} == {"css", "js", "svg"}
    for path, answer in found.items():
        assert answer.status_code == 200, path
    assert found["/ui/playground.js"].headers["content-type"].startswith("text/javascript")


async def test_page_may_load_and_reach_nothing_but_its_own_origin() -> None:
    async with running() as service:
        page = await service.client.get("/")
        scripts = [
            (await service.client.get(f"/ui/{name}.js")).text
            for name in ("playground", "api", "controls", "curve", "format", "view")
        ]
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "://" not in page.text
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", page.text)
    for script in scripts:
        assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", script)


async def test_what_the_browser_has_is_not_sent_again() -> None:
    async with running() as service:
        for path in ("/", "/ui/playground.css"):
            first = await service.client.get(path)
            assert first.headers["cache-control"] == "no-cache"
            again = await service.client.get(path, headers={"if-none-match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            other = await service.client.get(path, headers={"if-none-match": '"other"'})
            assert other.status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2f__init__.py", "%00"])
async def test_other_names_are_not_found(name: str) -> None:
    async with running() as service:
        answer = await service.client.get(f"/ui/{name}")
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


async def test_page_and_files_need_no_key() -> None:
    async with running(api_key="sesame") as service:
        page = await service.client.get("/")
        for path in ["/", *parts(page.text)]:
            assert (await service.client.get(path)).status_code == 200, path
