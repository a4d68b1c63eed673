"""Which precisions a bundle carries, which one serves, and whether the figures are of that one."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from models.config import ExportConfig
from models.errors import ConfigError, ReleaseError, RunError
from models.export import precisions as variants
from models.export.precision import at_precision
from models.export.precisions import Exported, choose, export_variants
from models.runs import encoder_file, open_run
from models.trained import load_model
from service.bundle.manifest import VariantInfo
from service.bundle.verify import read_manifest
from service.core.engine import GOLDEN_TOLERANCE, Engine
from service.errors import GoldenMismatch
from tests.support.tiny_job import write_tiny_job


def found(p_at_1):
    return VariantInfo(
        bytes=1,
        max_abs_diff=0.0,
        top1_agreement=1.0,
        p_at_1=p_at_1,
        p_at_1_change=0.0,
        encode_us_p50=1.0,
    )


def measured(fp32=50.0, fp16=50.0, int8=50.0):
    return {"fp32": found(fp32), "fp16": found(fp16), "int8": found(int8)}


def test_a_bag_serves_half_precision_and_a_transformer_int8():
    assert choose(ExportConfig(), measured(), has_transformer=False)[0] == "fp16"
    assert choose(ExportConfig(), measured(), has_transformer=True)[0] == "int8"


def test_a_variant_that_loses_over_one_percent_is_left_out(caplog):
    served, carried = choose(ExportConfig(), measured(int8=49.4), has_transformer=True)
    assert served == "fp32"
    assert carried == ["fp32", "fp16"]
    assert "int8 loses more than export.max_p_at_1_loss" in caplog.text


def test_a_loss_of_exactly_what_is_allowed_passes():
    assert choose(ExportConfig(), measured(int8=49.5), has_transformer=True)[0] == "int8"


def test_a_variant_that_loses_is_taken_where_it_is_asked_for_by_name():
    config = ExportConfig(serve="int8")
    assert choose(config, measured(int8=20.0), True) == ("int8", ["fp32", "fp16", "int8"])


def test_only_what_is_configured_is_carried():
    config = ExportConfig(variants=["int8"])
    assert choose(config, measured(), has_transformer=False) == ("int8", ["int8"])


def test_a_bundle_may_carry_only_what_serves():
    config = ExportConfig(carry="served")
    assert choose(config, measured(), has_transformer=False) == ("fp16", ["fp16"])
    named = ExportConfig(carry="served", serve="int8")
    assert choose(named, measured(int8=10.0), has_transformer=False) == ("int8", ["int8"])


def test_nothing_left_to_serve_is_an_error_that_says_what_to_do():
    config = ExportConfig(variants=["int8"])
    with pytest.raises(ReleaseError, match=r"add fp32, or name one in export\.serve"):
        choose(config, measured(int8=10.0), has_transformer=True)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ('export.variants=["fp32", "fp32"]', "names a precision twice"),
        ("export.variants=[]", "export.variants"),
        ('export.variants=["int4"]', "int4"),
        ("export.serve=int4", "int4"),
    ],
)
def test_wrong_names_are_refused(tmp_path, setting, sentence):
    with pytest.raises(ConfigError, match=sentence):
        write_tiny_job(tmp_path, setting)


def test_a_variant_to_serve_must_be_among_those_exported(tmp_path):
    with pytest.raises(ConfigError, match=r"not among export\.variants"):
        write_tiny_job(tmp_path, 'export.variants=["fp32"]', "export.serve=fp16")


def export_again(job, folder):
    """Export the trained model of a job into a run folder elsewhere; returns that run."""
    run = open_run(folder, job.run.config, job.run.data_sha256, job.parts.sha256)
    export_variants(load_model(job.run), job.validation, run)
    return run


def test_a_variant_that_breaks_is_measured_and_left_out(sealed, tiny_job, tmp_path, monkeypatch):
    """A fake that stores every table upside down loses nearly everything."""

    def broken(traced, precision, sample):
        model = at_precision(traced, precision, sample)
        if precision == "fp16":
            for tensor in model.graph.initializer:
                if len(tensor.dims) == 2:
                    array = np.frombuffer(tensor.raw_data, np.float16).reshape(tensor.dims)
                    tensor.raw_data = array[::-1].tobytes()
        return model

    monkeypatch.setattr(variants, "at_precision", broken)
    exported = Exported.of(export_again(tiny_job, tmp_path))
    assert exported.served == "fp32"
    assert exported.carried == ["fp32", "int8"]
    assert exported.measured["fp16"].p_at_1_change < -20
    assert exported.measured["fp32"].p_at_1_change == 0.0
    assert exported.parity("fp32").max_abs_diff < 1e-5


def test_a_run_that_exported_nothing_says_which_stage_is_missing(tmp_path, tiny_job):
    run = open_run(tmp_path, tiny_job.run.config, "0" * 64, "0" * 64)
    with pytest.raises(RunError, match="python -m models export"):
        Exported.of(run)


def test_a_sealed_bundle_carries_and_describes_every_variant(sealed, tiny_job):
    manifest = read_manifest(sealed)
    encoder = manifest.encoder
    assert encoder.served == "fp16"
    assert encoder.variants == {name: encoder_file(name) for name in ("fp32", "fp16", "int8")}
    assert set(encoder.measured) == set(encoder.variants)
    sizes = [encoder.measured[name].bytes for name in ("fp32", "fp16", "int8")]
    assert sizes == sorted(sizes, reverse=True)
    for name, info in encoder.measured.items():
        assert info.bytes == manifest.files[encoder.variants[name]].bytes
        assert info.encode_us_p50 > 0
    assert manifest.parity == Exported.of(tiny_job.run).parity("fp16")
    assert encoder.measured["fp32"].max_abs_diff < 1e-5


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_every_variant_of_a_sealed_bundle_opens_and_replays(sealed, variant):
    engine = Engine.open(sealed, device="cpu", variant=variant)
    assert engine.variant == variant
    allowed = engine.manifest.encoder.measured[variant].golden_drift + GOLDEN_TOLERANCE
    assert max(engine.golden_drifts(engine.manifest.golden)) <= allowed


def test_a_drift_that_was_not_measured_is_not_allowed(sealed):
    engine = Engine.open(sealed, device="cpu", variant="int8")
    encoder = engine.manifest.encoder.model_copy(update={"measured": {}})
    golden = [
        item.model_copy(update={"scores": [score + 0.01 for score in item.scores]})
        for item in engine.manifest.golden
    ]
    update = {"encoder": encoder, "golden": golden}
    changed = replace(engine, manifest=engine.manifest.model_copy(update=update))
    with pytest.raises(GoldenMismatch, match="variant int8"):
        changed.replay_golden()


def test_the_log_says_what_each_variant_costs(sealed, tiny_job, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="models.export.precisions")
    export_again(tiny_job, tmp_path)
    for name in ("fp32", "fp16", "int8"):
        assert f"{name}: P@1 " in caplog.text
    assert "carried: fp32, fp16, int8; served: fp16" in caplog.text
