"""The encoder in another precision than the bundle's own choice: asked for, refused, replayed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from service.bundle.manifest import MANIFEST, EncoderInfo
from service.bundle.verify import verify
from service.core.engine import Engine
from service.errors import BundleMismatch, GoldenMismatch, VariantMissing
from tests.support.tiny_bundle import seal, write_tiny_bundle

MEASURED = {
    "bytes": 1,
    "max_abs_diff": 0.1,
    "top1_agreement": 0.9,
    "p_at_1": 50.0,
    "p_at_1_change": -0.1,
    "encode_us_p50": 10.0,
    "golden_drift": 0.2,
}


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest["encoder"])
    seal(folder, manifest)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a second encoder, which moves served scores by some hundredths."""
    folder = write_tiny_bundle(tmp_path_factory.mktemp("variants") / "tiny")
    model = onnx.load(folder / "encoder.onnx")
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    vectors = numpy_helper.to_array(table)
    errors = np.random.default_rng(1).normal(1.0, 0.05, vectors.shape)
    table.CopyFrom(numpy_helper.from_array((vectors * errors).astype(np.float32), "table"))
    onnx.save(model, folder / "encoder.int8.onnx")
    files = {"fp32": "encoder.onnx", "int8": "encoder.int8.onnx"}
    reseal(folder, lambda encoder: encoder.update(variants=files, measured={"int8": MEASURED}))
    return folder


@pytest.fixture
def bundle(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "tiny"))


def test_the_bundles_own_choice_runs_where_nothing_is_asked_for(sealed: Path) -> None:
    assert Engine.open(sealed, device="cpu").variant == "fp32"


def test_a_variant_runs_where_it_is_asked_for(sealed: Path) -> None:
    engine = Engine.open(sealed, device="cpu", variant="int8")
    assert engine.variant == "int8"
    moved = max(engine.golden_drifts(engine.manifest.golden))
    assert 1e-3 < moved < MEASURED["golden_drift"]


def test_a_variant_that_is_not_there_is_refused_naming_those_that_are(sealed: Path) -> None:
    with pytest.raises(VariantMissing, match=r"variant fp16 was asked for.* has fp32, int8"):
        Engine.open(sealed, device="cpu", variant="fp16")


@pytest.mark.parametrize(
    "measured", [{}, {"int8": MEASURED | {"golden_drift": None}}, {"fp32": MEASURED}]
)
def test_a_variant_whose_drift_was_not_measured_is_held_to_the_recorded_scores(
    bundle: Path, measured: dict[str, Any]
) -> None:
    reseal(bundle, lambda encoder: encoder.update(measured=measured))
    with pytest.raises(
        GoldenMismatch, match=r"variant int8: served scores moved by 0\.\d+, 0\.001"
    ):
        Engine.open(bundle, device="cpu", variant="int8")


def test_the_allowed_drift_is_the_variants_own(bundle: Path) -> None:
    reseal(bundle, lambda encoder: encoder.update(file="encoder.int8.onnx"))
    assert Engine.open(bundle, device="cpu").variant == "int8"
    wrong = {"int8": MEASURED | {"golden_drift": 0.0}}
    reseal(bundle, lambda encoder: encoder.update(measured=wrong))
    with pytest.raises(GoldenMismatch):
        Engine.open(bundle, device="cpu")


def test_a_file_that_is_no_variant_is_refused(bundle: Path) -> None:
    reseal(bundle, lambda encoder: encoder.update(variants={"int8": "encoder.int8.onnx"}))
    with pytest.raises(BundleMismatch, match=r"encoder\.file is 'encoder\.onnx'"):
        verify(bundle)


def test_a_bundle_sealed_before_variants_were_measured_opens(tiny_bundle: Path) -> None:
    manifest = verify(tiny_bundle)
    assert manifest.encoder.measured == {}
    assert EncoderInfo.model_validate(manifest.encoder.model_dump()).served == "fp32"
    assert Engine.open(tiny_bundle, device="cpu", variant="fp32").variant == "fp32"
