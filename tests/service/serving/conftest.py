"""A folder of bundles for every test of what is served, and of how that changes."""

from pathlib import Path

import pytest

from tests.support.bundle_root import write_bundle_root


@pytest.fixture
def root(tiny_bundle: Path, tiny_flat_bundle: Path, tmp_path: Path) -> Path:
    """A bundle root of the test's own: `one`, `two`, `other` and `broken`."""
    return write_bundle_root(tmp_path / "bundles", tiny_bundle, tiny_flat_bundle)
