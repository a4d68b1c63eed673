import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.bundle.manifest import MANIFEST
from service.bundle.verify import verify
from service.errors import BundleError
from tests.support.hostile import changed_bytes, changed_manifest


@pytest.fixture(scope="module")
def folder(tiny_memory_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose manifest each example writes anew."""
    return Path(shutil.copytree(tiny_memory_bundle, tmp_path_factory.mktemp("fuzz") / "bundle"))


@pytest.fixture(scope="module")
def sound(tiny_memory_bundle: Path) -> dict[str, Any]:
    return dict(json.loads((tiny_memory_bundle / MANIFEST).read_text()))


def verdict(folder: Path, raw: bytes) -> str:
    (folder / MANIFEST).write_bytes(raw)
    try:
        verify(folder)
    except BundleError as exc:
        code = exc.code
    else:
        code = "sound"
    return code


@settings(
    max_examples=300,
    deadline=5000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rng=st.randoms(use_true_random=False))
def test_any_changed_manifest_is_sound_or_a_bundle_error(
    folder: Path, sound: dict[str, Any], rng: random.Random
) -> None:
    verdict(folder, changed_manifest(sound, rng))


@settings(max_examples=300, deadline=5000, derandomize=True)
@given(raw=st.binary(max_size=200))
def test_any_bytes_at_all_are_a_bundle_error(folder: Path, raw: bytes) -> None:
    assert verdict(folder, raw) != "sound"


def test_the_changes_reach_past_the_first_check(folder: Path, sound: dict[str, Any]) -> None:
    found = {verdict(folder, changed_manifest(sound, random.Random(seed))) for seed in range(300)}
    wanted = {"sound", "manifest_invalid", "bundle_mismatch", "schema_version_unknown"}
    assert wanted <= found
    assert changed_bytes(b"", random.Random(1)) is not None
