"""Every field of a manifest is checked when the bundle is opened: what passes can be served."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.bundle.manifest import MANIFEST, bundle_id_of
from service.bundle.verify import read_manifest
from service.core.engine import Engine
from service.errors import BundleError, ManifestInvalid
from tests.support.live import live_service
from tests.support.tiny_bundle import write_tiny_bundle

NASTY: dict[type, tuple[Any, ...]] = {
    str: ("yesterday", "", "a/../b", "a\n\u2028\x00", "\u00e9\u202e", "x" * 200_000, "2026-01-01"),
    int: (-1, 2**31, 2**62, True, 1.5),
    float: (-1.0, 1e308, -1e308, 1e-320, 7),
    bool: (0, "true"),
    type(None): (0, "", []),
}
PATHS = ("/v1/models", "/v1/models/{name}", "/v1/info", "/v2/models/{name}", "/metrics")
PATHS += ("/v2/models/{name}/config", "/readyz?deep=true", "/v1/recommend?q=whale", "/")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every text and number in a JSON document, and of the first three of a list."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, (*path, key))
    elif isinstance(value, list):
        for key, child in enumerate(value[:3]):
            yield from leaves(child, (*path, key))
    else:
        yield path


def changed(manifest: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    manifest = copy.deepcopy(manifest)
    place: Any = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return manifest


def reseal(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["bundle_id"] = bundle_id_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("created",), "yesterday"),
        (("created",), "2026-01-01"),
        (("created",), "2026-01-01T00:00:00"),
        (("created",), "0001-01-01T00:00:00+14:00"),
        (("created",), 1_700_000_000),
        (("name",), "a/b"),
        (("name",), ""),
        (("index", "metric"), "cosine"),
        (("quality", "n_queries"), -1),
        (("operating_points", 0, "search_us_p50"), -0.5),
        (("operating_points", 0, "recall_at_10"), 1.5),
        (("parity", "top1_agreement"), -1.0),
        (("code", "revision"), "x" * 2000),
    ],
)
def test_a_field_that_says_nothing_sensible_is_named(
    tiny_bundle: Path, tmp_path: Path, path: tuple[Any, ...], value: Any
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    reseal(folder, changed(json.loads((folder / MANIFEST).read_text()), path, value))
    with pytest.raises(ManifestInvalid) as refusal:
        read_manifest(folder)
    assert ".".join(map(str, path)) in refusal.value.detail


def test_whatever_field_is_changed_the_bundle_is_refused_or_served(tmp_path: Path) -> None:
    """Values that pass stay in the manifest; in the end it serves with all of them."""
    folder = write_tiny_bundle(tmp_path / "bundle", memory=True)
    sound = json.loads((folder / MANIFEST).read_text())
    served = sound
    for path in (path for path in leaves(sound) if path[0] != "files"):
        place: Any = sound
        for key in path:
            place = place[key]
        for value in NASTY[type(place)]:
            candidate = changed(served, path, value)
            reseal(folder, candidate)
            try:
                Engine.open(folder, device="cpu")
            except BundleError:
                continue
            served = candidate
    assert served != sound
    reseal(folder, served)
    with live_service(folder) as url, httpx.Client(base_url=url, timeout=30) as client:
        for path_ in PATHS:
            answer = client.get(path_.format(name=served["name"]))
            assert answer.status_code == 200, (path_, answer.text)
