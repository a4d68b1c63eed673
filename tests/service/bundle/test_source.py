"""What a fetch does with a store that is whole, broken, slow to answer, or gone."""

import hashlib
import shutil
import threading
from pathlib import Path

import pytest

from service.bundle.cache import BundleCache
from service.bundle.manifest import MANIFEST, POINTER
from service.bundle.open_files import OpenFiles, stamps
from service.bundle.source import fetch
from service.bundle.verify import read_manifest, resolve, verify
from service.errors import (
    BundleNotFound,
    BundleUnavailable,
    BundleUnsigned,
    FileCorrupt,
    ManifestInvalid,
    SettingsInvalid,
)
from tests.support.object_server import Turn, object_server
from tests.support.tiny_bundle import write_tiny_bundle

INDEX = "index.flat.faiss"


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """A folder of bundles as `push` writes it."""
    folder = tmp_path_factory.mktemp("remote")
    bundle = write_tiny_bundle(folder / "tiny", kind="flat")
    bundle_id = read_manifest(bundle).bundle_id
    bundle.rename(folder / bundle_id)
    (folder / POINTER).write_text(f"{bundle_id}\n")
    return folder


@pytest.fixture
def cache(tmp_path):
    return BundleCache(tmp_path / "cache")


def bundle_id_of(remote: Path) -> str:
    return (remote / POINTER).read_text().strip()


def with_other_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_a_pointer_a_bundle_and_a_file_url_name_the_same_bundle(remote, cache):
    bundle_id = bundle_id_of(remote)
    with object_server(remote) as server:
        assert fetch(server.url, cache) == cache.bundle(bundle_id)
        assert fetch(f"{server.url}/{bundle_id}", cache) == cache.bundle(bundle_id)
        assert server.requests[INDEX] == 1  # the second fetch had it already
    assert fetch(f"file://{remote}", cache) == cache.bundle(bundle_id)
    verify(cache.bundle(bundle_id))
    assert resolve(cache.mirror(server.url)).resolve() == cache.bundle(bundle_id).resolve()


BROKEN = {
    "cut off": (INDEX, lambda data: Turn(body=data[:-1]), BundleUnavailable, "ended after"),
    "longer": (INDEX, lambda data: Turn(body=data + b"x"), FileCorrupt, "has over"),
    "swapped": (INDEX, lambda data: Turn(body=with_other_byte(data)), FileCorrupt, "has SHA-256"),
    "gone": (INDEX, lambda data: Turn(404), BundleUnavailable, "404"),
    "forbidden": (INDEX, lambda data: Turn(403), BundleUnavailable, "privileges"),
    "manifest cut off": (MANIFEST, lambda data: Turn(body=data[:99]), ManifestInvalid, "JSON"),
    "manifest changed": (
        MANIFEST,
        lambda data: Turn(body=data.replace(b"tiny", b"tinz")),
        ManifestInvalid,
        "changed after sealing",
    ),
    "manifest gone": (MANIFEST, lambda data: Turn(404), BundleNotFound, "is not there"),
    "pointer upward": (POINTER, lambda data: Turn(body=b"../x"), BundleNotFound, "'../x'"),
    "pointer endless": (POINTER, lambda data: Turn(body=b"x" * 9999), BundleUnavailable, "4096"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_object_is_named_and_the_next_fetch_is_whole(case, remote, cache):
    name, make_turn, error, words = BROKEN[case]
    path = next(remote.rglob(name))
    with object_server(remote, {name: [make_turn(path.read_bytes())]}) as server:
        with pytest.raises(error, match=words) as caught:
            fetch(server.url, cache)
        assert server.url in str(caught.value) or str(cache.folder) in str(caught.value)
        assert not cache.holds(bundle_id_of(remote))
        server.turns.clear()
        verify(fetch(server.url, cache))


def test_a_throttled_store_is_asked_again(remote, cache):
    with object_server(remote, {INDEX: [Turn(503), Turn(503), Turn()]}) as server:
        verify(fetch(server.url, cache))
        assert server.requests[INDEX] == 3


def test_a_fetch_goes_on_where_the_connection_ended(remote, cache, monkeypatch):
    monkeypatch.setattr("service.bundle.object_store.CHUNK_BYTES", 16)
    data = next(remote.rglob(INDEX)).read_bytes()
    half = len(data) // 2
    with object_server(remote, {INDEX: [Turn(cut_at=half), Turn()]}) as server:
        with pytest.raises(BundleUnavailable):
            fetch(server.url, cache)
        verify(fetch(server.url, cache))
        assert server.sent[INDEX] == len(data)


@pytest.mark.parametrize("kept_share", [0.0, 0.3, 0.99, 1.0])
def test_what_a_killed_fetch_has_left_is_not_fetched_again(kept_share, remote, cache):
    """The folder that a kill leaves: a prefix of each file."""
    bundle_id = bundle_id_of(remote)
    with object_server(remote) as server:
        staged = fetch(server.url, cache)
        for name in read_manifest(staged).files:
            data = (staged / name).read_bytes()
            (staged / name).write_bytes(data[: int(len(data) * kept_share)])
        manifest = (staged / MANIFEST).read_bytes()
        staged.rename(cache.folder / f".fetch-{hashlib.sha256(manifest).hexdigest()}")
        server.sent.clear()
        verify(fetch(server.url, cache))
        size = len((cache.bundle(bundle_id) / INDEX).read_bytes())
        assert server.sent[INDEX] == size - int(size * kept_share)


@pytest.mark.parametrize("size", [26, 99_999])
def test_a_wrong_rest_of_a_killed_fetch_is_fetched_anew(size, remote, cache):
    bundle_id = bundle_id_of(remote)
    with object_server(remote, {INDEX: [Turn(404)]}) as server:
        with pytest.raises(BundleUnavailable):
            fetch(server.url, cache)
        (staging,) = cache.folder.glob(".fetch-*")
        (staging / INDEX).write_bytes(b"x" * size)
        server.turns.clear()
        verify(fetch(server.url, cache))
    assert cache.holds(bundle_id)


def test_two_fetches_at_once_are_one(remote, cache):
    results = []
    with object_server(remote) as server:
        threads = [
            threading.Thread(target=lambda: results.append(fetch(server.url, cache)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.requests[INDEX] == 1
    assert results == [cache.bundle(bundle_id_of(remote))] * 4


def test_an_unsigned_bundle_is_refused_before_its_files(remote, cache):
    with object_server(remote) as server:
        with pytest.raises(BundleUnsigned):
            fetch(server.url, cache, keys={})
        assert server.requests[INDEX] == 0


def test_a_full_cache_gives_up_what_nobody_uses(remote, tmp_path):
    size = sum(path.stat().st_size for path in (remote / bundle_id_of(remote)).iterdir())
    cache = BundleCache(tmp_path / "cache", max_bytes=2 * size + 99)
    others = [tmp_path / "cache" / (digit * 64) for digit in "ab"]
    for other in others:
        shutil.copytree(remote / bundle_id_of(remote), other)
    files = OpenFiles(others[0], {}, stamps(others[0]))
    fetch(f"file://{remote}", cache)
    assert [other.exists() for other in others] == [True, False]
    small = BundleCache(tmp_path / "cache", max_bytes=size)
    shutil.rmtree(cache.bundle(bundle_id_of(remote)))
    with pytest.raises(BundleUnavailable, match="bundle_cache_bytes"):
        fetch(f"file://{remote}", small)
    del files  # closed: now it may go
    fetch(f"file://{remote}", small)
    assert not others[0].exists()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://127.0.0.1:9", BundleUnavailable),
        ("file:///nowhere/at/all", BundleNotFound),
        ("hf://owner", SettingsInvalid),
    ],
)
def test_a_url_without_a_store_is_an_error(url, error, cache, monkeypatch):
    monkeypatch.setattr("service.bundle.object_store.RETRY_S", 0.0)
    with pytest.raises(error, match=url.split(":")[0]):
        fetch(url, cache)


def test_a_store_that_stays_away_is_always_the_same_sentence(cache, monkeypatch):
    monkeypatch.setattr("service.bundle.object_store.RETRY_S", 0.0)
    sentences = set()
    for _ in range(3):
        with pytest.raises(BundleUnavailable) as caught:
            fetch("http://127.0.0.1:9/bundles", cache)
        sentences.add(caught.value.detail)
    assert len(sentences) == 1, sentences


def test_a_hub_url_asks_for_a_revision(remote, cache, monkeypatch, tmp_path):
    tree = tmp_path / "owner" / "name" / "resolve" / "v1"
    shutil.copytree(remote, tree)
    with object_server(tmp_path) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "secret")
        verify(fetch("hf://owner/name@v1", cache))


def test_a_disk_that_refuses_is_an_error(remote, tmp_path):
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(BundleUnavailable, match="bundle_cache"):
        fetch(f"file://{remote}", BundleCache(tmp_path / "cache"))
