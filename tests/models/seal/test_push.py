"""`python -m models push` and `pull`, against a store with the interface of S3 and one of files."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from moto.server import ThreadedMotoServer

from models.__main__ import main
from models.seal.push import push
from service.bundle.manifest import MANIFEST, POINTER, SIGNATURES
from service.bundle.object_store import ObjectStore
from service.bundle.verify import read_manifest, resolve, verify
from tests.support.bundle_root import reseal
from tests.support.signing import Author


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["s3", "file"])
def url(
    request: pytest.FixtureRequest,
    endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Where a folder of bundles may be pushed to; empty."""
    if request.param == "file":
        (tmp_path / "store").mkdir()
        return f"file://{tmp_path}/store"
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"bundles-{abs(hash(tmp_path)) % 10**9}"
    assert httpx.put(f"{endpoint}/{bucket}").status_code == 200
    return f"s3://{bucket}/tiny"


@pytest.fixture
def bundles(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A folder with the bundles `one`, which is current, and `two`."""
    reseal(tiny_bundle, tmp_path / "bundles" / "one")
    reseal(tiny_bundle, tmp_path / "bundles" / "two", created="2026-02-02T00:00:00Z")
    (tmp_path / "bundles" / POINTER).write_text("one\n")
    return tmp_path / "bundles"


def test_what_is_pushed_is_pulled(
    url: str, bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(bundles), url]) == 0
    assert main(["pull", f"{url}/", str(tmp_path / "here")]) == 0
    folder = resolve(tmp_path / "here")
    assert verify(folder) == read_manifest(bundles / "one")
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    assert main(["push", str(bundles / "two"), url]) == 0
    assert main(["pull", url, str(tmp_path / "here")]) == 0
    assert verify(resolve(tmp_path / "here")) == read_manifest(bundles / "two")


def test_a_bundle_that_is_there_is_not_sent_again(url: str, bundles: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    push(bundles, url, lines.append)
    assert lines[-1].split()[0].endswith(f"/{MANIFEST}")
    lines.clear()
    author = Author(tmp_path, "author")
    assert main(["sign", "--bundle", str(bundles), "--key", str(author.private)]) == 0
    push(bundles, url, lines.append)
    assert [line.split()[0].rpartition("/")[2] for line in lines] == [SIGNATURES]


def test_a_broken_bundle_is_not_pushed(
    url: str, bundles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundles / "one" / "labels.jsonl").write_bytes(b"{}")
    assert main(["push", str(bundles), url]) == 1
    assert "labels.jsonl" in capsys.readouterr().err
    assert ObjectStore(url).read(POINTER, 99) is None


def test_of_two_pushes_at_once_the_later_one_says_who_was_first(
    url: str,
    bundles: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if url.startswith("file://"):  # a store of files cannot compare
        push(bundles, url)
        assert push(bundles / "two", url) == read_manifest(bundles / "two").bundle_id
        return
    swap = ObjectStore.swap
    winner = read_manifest(bundles / "two").bundle_id

    def late(store: ObjectStore, name: str, content: bytes, before: object) -> bool:
        monkeypatch.setattr(ObjectStore, "swap", swap)
        push(bundles / "two", url)
        return swap(store, name, content, before)  # type: ignore[arg-type]

    monkeypatch.setattr(ObjectStore, "swap", late)
    assert main(["push", str(bundles), url]) == 1
    assert winner in capsys.readouterr().err
    pointer = ObjectStore(url).read(POINTER, 99)
    assert pointer is not None
    assert pointer.data.decode().strip() == winner


def test_a_pull_of_nothing_is_an_error(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", url, str(tmp_path / "here")]) == 1
    assert "neither CURRENT nor manifest.json" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "here", ignore_errors=True)
