"""Writes the encoder in the configured precisions, compares them with fp32, and chooses one.

A variant that loses more of fp32's P@1 than the configuration allows is left out, unless
`export.serve` names it. The later stages (index, calibration, quality) use the variant that serves.
The files lie in the run folder; models.seal.release copies them into the bundle.
"""

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from models.config import ExportConfig, Precision
from models.data.tokens import TokenizedTexts
from models.encoders.build import embed, transformer_of
from models.errors import ReleaseError, RunError
from models.export.export_onnx import encode_with, parity, trace
from models.export.precision import at_precision
from models.quality.metrics import precision_at_k
from models.runs import Run, encoder_file
from models.training.loop import Validation
from models.training.method import Method
from service.atomic import write_atomic
from service.bundle.manifest import ParityInfo, VariantInfo
from service.core.encoding.encoder import OnnxEncoder

log = logging.getLogger(__name__)

REFERENCE: Precision = "fp32"
RECORD = "encoder"
# `export.serve = "auto"` takes the first that passes. A bag in fp16 has half the bytes of fp32 and
# the same arithmetic; a transformer on a CPU is fastest in int8 (docs/decisions/0009).
_FOR_BAG: tuple[Precision, ...] = ("fp16", "fp32", "int8")
_FOR_TRANSFORMER: tuple[Precision, ...] = ("int8", "fp32", "fp16")
# Choices: texts to warm up with, and texts for a median. They take a second or two.
_WARM_UP = 20
_TIMED_TEXTS = 200


class Exported(BaseModel):
    """A run's record `encoder`: the figures of all precisions, those to carry and that to serve."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int
    n_queries: int
    measured: dict[Precision, VariantInfo]
    carried: list[Precision]
    served: Precision

    @classmethod
    def of(cls, run: Run) -> "Exported":
        """Read the record of the export stage. Raises RunError where the stage has not run."""
        record = run.measured().get(RECORD)
        if record is None:
            raise RunError(f"{run.folder} has no encoder: run `python -m models export` first")
        return cls.model_validate(record)

    def parity(self, precision: Precision) -> ParityInfo:
        """The comparison of a precision with torch."""
        variant = self.measured[precision]
        return ParityInfo(
            max_abs_diff=variant.max_abs_diff,
            top1_agreement=variant.top1_agreement,
            n_queries=self.n_queries,
        )


def export_variants(model: Method, validation: Validation, run: Run) -> None:
    """Write and measure the variants, choose one, and record all. Raises ReleaseError.

    fp32 is always written and measured, because the others are compared with it.
    """
    config = run.config.export
    traced = trace(model.encoder)
    expected = embed(model.encoder, validation.queries)
    measured: dict[Precision, VariantInfo] = {}
    for precision in (REFERENCE, *(name for name in config.variants if name != REFERENCE)):
        path = run.folder / encoder_file(precision)
        write_atomic(path, partial(onnx.save, at_precision(traced, precision, validation.queries)))
        variant = measure(path, expected, model, validation, measured.get(REFERENCE))
        measured[precision] = variant
        log.info(
            "%s: P@1 %.2f (%+.2f), first label as torch's for %.2f %%, %.0f us a query, %.1f MB",
            precision,
            variant.p_at_1,
            variant.p_at_1_change,
            100 * variant.top1_agreement,
            variant.encode_us_p50,
            variant.bytes / 1e6,
        )
    has_transformer = transformer_of(model.encoder) is not None
    served, carried = choose(config, measured, has_transformer)
    log.info("carried: %s; served: %s", ", ".join(carried), served)
    exported = Exported(
        dim=model.encoder.dim,
        n_queries=len(expected),
        measured=measured,
        carried=carried,
        served=served,
    )
    run.record(**{RECORD: exported.model_dump()})


def measure(
    path: Path,
    expected: NDArray[np.float32],
    model: Method,
    validation: Validation,
    reference: VariantInfo | None,
) -> VariantInfo:
    """Measure a variant on the validation points; `expected` (n, dim) are torch's embeddings.

    `reference` are the figures of fp32, None for fp32 itself.
    """
    texts = validation.queries
    rows = encode_with(OnnxEncoder(path, "cpu", torch.get_num_threads()), texts)
    ranked = validation.first(model.best(rows, 1 + validation.spare).labels, 1)
    p_at_1 = 100 * precision_at_k(ranked, validation.truth, 1)
    against_torch = parity(expected, rows, lambda embeddings: model.best(embeddings, 1).labels)
    return VariantInfo(
        bytes=path.stat().st_size,
        max_abs_diff=against_torch.max_abs_diff,
        top1_agreement=against_torch.top1_agreement,
        p_at_1=round(p_at_1, 3),
        p_at_1_change=round(p_at_1 - reference.p_at_1, 3) if reference else 0.0,
        encode_us_p50=round(_one_by_one_us(OnnxEncoder(path, "cpu"), texts), 1),
    )


def choose(
    config: ExportConfig, measured: Mapping[Precision, VariantInfo], has_transformer: bool
) -> tuple[Precision, list[Precision]]:
    """Choose the variant that serves, and all variants that the bundle carries.

    Raises ReleaseError where no variant is precise enough.
    """
    min_p_at_1 = (1 - config.max_p_at_1_loss) * measured[REFERENCE].p_at_1
    carried: list[Precision] = []
    for name in config.variants:
        passes = measured[name].p_at_1 >= min_p_at_1
        if passes or name == config.serve:
            carried.append(name)
        if not passes:
            log.warning(
                "%s loses more than export.max_p_at_1_loss (%g of P@1 %.2f): %s",
                name,
                config.max_p_at_1_loss,
                measured[REFERENCE].p_at_1,
                "served, as export.serve says" if name == config.serve else "left out",
            )
    preference = _FOR_TRANSFORMER if has_transformer else _FOR_BAG
    if config.serve != "auto":
        preference = (config.serve,)
    for name in preference:
        if name in carried:
            return name, carried if config.carry == "all" else [name]
    raise ReleaseError(
        f"every precision of export.variants ({', '.join(config.variants)}) loses more P@1 than "
        f"export.max_p_at_1_loss ({config.max_p_at_1_loss:g}) allows: add fp32, or name one in "
        "export.serve"
    )


def _one_by_one_us(encoder: OnnxEncoder, texts: TokenizedTexts) -> float:
    """Median microseconds to encode one text alone."""
    batches = [texts.batch(np.array([row])) for row in range(min(_TIMED_TEXTS, len(texts)))]
    for batch in batches[:_WARM_UP]:
        encoder.encode(batch)
    seconds = np.empty(len(batches))
    for i, batch in enumerate(batches):
        start_s = time.perf_counter()
        encoder.encode(batch)
        seconds[i] = time.perf_counter() - start_s
    return float(np.median(seconds)) * 1e6
