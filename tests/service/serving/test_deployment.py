"""Deployment: limits that a bundle cannot work under are refused, and the GPU gets its settings."""

from pathlib import Path

import pytest

from service.errors import SettingsInvalid
from service.serving.deployment import check_limits, gpu_options
from tests.support.fakes import fake_manifest, fake_settings


def test_settings_refuse_batch_budget_below_max_tokens() -> None:
    with pytest.raises(
        SettingsInvalid, match=r"max_batch_tokens \(8\) .* max_tokens \(32\): raise"
    ):
        check_limits(fake_settings(max_batch_tokens=8), fake_manifest())


def test_settings_refuse_max_k_below_the_default_k() -> None:
    with pytest.raises(SettingsInvalid, match=r"max_k \(5\) .* default k \(10\): raise"):
        check_limits(fake_settings(max_k=5), fake_manifest())


def test_settings_refuse_a_queue_that_cannot_hold_one_full_request() -> None:
    settings = fake_settings(max_queries=64, max_queue_tokens=64 * 32 - 1, max_batch_tokens=32)
    with pytest.raises(SettingsInvalid, match="ASTROLABE_MAX_QUEUE_TOKENS to 2048"):
        check_limits(settings, fake_manifest())


def test_fitting_settings_pass_the_bundle_check() -> None:
    check_limits(fake_settings(), fake_manifest())


def test_what_is_set_for_the_gpu_reaches_it(tmp_path: Path) -> None:
    settings = fake_settings(
        gpu_device_id=2, gpu_memory_mb=512, gpu_max_rows=16, cuda_graphs=True, tensorrt_cache="c"
    )
    options = gpu_options(settings)
    assert (options.device_id, options.memory_mb, options.max_rows) == (2, 512, 16)
    assert (options.graphs, options.engine_cache) == (True, Path("c"))
