"""A service whose bundles lie under a URL: its start, its pointer, its admin requests."""

import asyncio
import shutil
from pathlib import Path

import pytest

from service.bundle.manifest import POINTER
from service.errors import BundleError, SettingsInvalid
from service.serving.fetching import Fetching, fetched_folder
from service.settings.places import BundleUrl, parse_place
from service.settings.settings import load_settings
from tests.support.bundle_root import admin, ask, bundle_id, reseal, serving_root
from tests.support.fakes import SAFETY_S, Running, fake_settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(root: Path) -> BundleUrl:
    """Of the root, to which a bundle is added that is not what its manifest says."""
    reseal(root / "one", root / "cracked", created="2026-03-03T00:00:00Z")
    (root / "cracked" / "labels.jsonl").write_bytes(b"{}")
    return BundleUrl(f"file://{root}")


async def until_served(service: Running, id_: str) -> None:
    async with asyncio.timeout(SAFETY_S):
        while (await ask(service))["bundle_id"] != id_:
            await asyncio.sleep(0.02)


async def test_a_moved_pointer_is_fetched_and_served(
    root: Path, url: BundleUrl, tmp_path: Path
) -> None:
    async with serving_root(url, bundle_cache=tmp_path / "cache", watch_s=0.02) as service:
        assert (await ask(service))["bundle_id"] == bundle_id(root / "one")
        (root / POINTER).write_text("two")
        await until_served(service, bundle_id(root / "two"))
        (root / POINTER).write_text("cracked")
        async with asyncio.timeout(SAFETY_S):
            sample = 'astrolabe_background_errors_total{task="follow-pointer"}'
            while not await service.metric(sample):
                await asyncio.sleep(0.02)
        assert (await ask(service))["bundle_id"] == bundle_id(root / "two")


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("two", 200, None),
        ("{root}/two", 200, None),
        ("cracked", 422, "bundle_refused"),
        ("three", 404, "no_such_bundle"),
        ("file:///elsewhere/two", 404, "no_such_bundle"),
        ("s3://elsewhere/two", 404, "no_such_bundle"),
        ("{root}/../two", 422, "invalid_value"),
        ("{root}-other/two", 404, "no_such_bundle"),
        ("ftp://host/two", 422, "invalid_value"),
        ("s3://user:key@host/two", 422, "invalid_value"),
    ],
)
async def test_an_admin_names_bundles_under_the_root(
    name: str, status: int, code: str | None, root: Path, url: BundleUrl, tmp_path: Path
) -> None:
    async with serving_root(url, bundle_cache=tmp_path / "cache") as service:
        answer = await admin(service, "activate", bundle=name.format(root=url))
        assert answer.status_code == status, answer.text
        assert answer.json().get("code") == code
        expected = "two" if status == 200 else "one"
        assert (await ask(service))["bundle_id"] == bundle_id(root / expected)


def test_a_store_that_is_away_leaves_the_bundle_that_it_named_last(
    root: Path, url: BundleUrl, tmp_path: Path
) -> None:
    settings = fake_settings(bundle=url, bundle_cache=tmp_path / "cache")
    folder = fetched_folder(url, settings)
    before = bundle_id(folder.resolve() / (folder / POINTER).read_text().strip())
    # The cache cannot be written either: what it holds is enough.
    (tmp_path / "cache" / ".lock").unlink()
    (tmp_path / "cache" / ".lock").mkdir()
    assert fetched_folder(url, settings) == folder
    assert before == bundle_id(root / "one")
    shutil.rmtree(folder)
    with pytest.raises(BundleError):
        fetched_folder(url, settings)


def test_a_fetch_that_crashes_is_an_error(
    url: BundleUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    fetching = Fetching(url, fake_settings(bundle=url, bundle_cache=tmp_path / "cache"))
    with pytest.raises(BundleError, match="killed or crashed"):
        fetching.fetch()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("var/bundles", Path),
        ("/srv/x:y", Path),
        ("s3://bucket/bundles/", BundleUrl),
        ("hf://owner/name@main", BundleUrl),
        ("ftp://host/x", ValueError),
        ("s3://bucket/a?b=c", ValueError),
        ("https://user:pass@host/a", ValueError),
        ("s3://bucket/../a", ValueError),
        ("s3://bucket//a", ValueError),
        ("s3://", ValueError),
    ],
)
def test_a_place_is_a_path_or_a_url(text: str, kind: type) -> None:
    if kind is ValueError:
        with pytest.raises(SettingsInvalid, match="ASTROLABE_BUNDLE"):
            load_settings([f"--bundle={text}"])
    else:
        assert isinstance(parse_place(text), kind)
        assert isinstance(load_settings([f"--bundle={text}"]).bundle, kind)
