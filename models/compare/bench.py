"""Measures one system after another. It trains peers itself, and Astrolabe by its own stages.

Astrolabe's scores are those of a sealed bundle, through the code that serves it. The bench saves
the record after each system, because a peer's library may crash the process.
"""

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from models import stages
from models.compare.exam import TIMED_LABELS, Exam
from models.compare.peers import features
from models.compare.peers.peer import Peer
from models.compare.peers.registry import make_peer
from models.compare.record import OURS, Comparison, Provenance, Row
from models.config import Config
from models.encoders.usage import resolve_config
from models.errors import ComparisonError
from models.quality.evaluate import evaluate, rank
from models.runs import Run, run_digest
from service.atomic import staging_folder
from service.bundle.manifest import Manifest, QualityInfo
from service.bundle.verify import read_manifest, resolve
from service.core.engine import Engine
from service.core.types import Query

log = logging.getLogger(__name__)


class Bench:
    """Adds the row of one system after another to a comparison.

    It skips a system that the comparison has a row of, unless `again` is true, and saves the
    comparison in the folder `out` after each row. Astrolabe's runs and bundles lie under `var`.
    """

    def __init__(
        self,
        exam: Exam,
        comparison: Comparison,
        out: Path,
        var: Path,
        again: bool,
        provenance: Provenance,
    ) -> None:
        self.exam = exam
        self.comparison = comparison
        self._out = out
        self._var = var
        self._again = again
        self._provenance = provenance

    def add_peer(self, name: str) -> None:
        """Train a peer in a folder of its own and measure it. Raises ModelsError."""
        with staging_folder(self._var) as folder:
            peer = make_peer(name, folder)
            settings = {"peer": peer.settings, "features": features.SETTINGS}
            digest = _digest([peer.version, settings])
            if not self._on_record(peer.title, digest):
                self._save(self._measure_peer(peer, digest, settings))

    def add_bundle(self, folder: Path) -> None:
        """Measure a sealed bundle. The row names its id too, as two bundles may have one name."""
        sealed = resolve(folder)
        manifest = read_manifest(sealed)
        system = f"{OURS} {manifest.name} ({manifest.bundle_id[:8]})"
        self._add_sealed(system, sealed, manifest, {})

    def add_config(self, config: Config) -> None:
        """Measure the bundle of a configuration; train and seal it first where there is none.

        A configuration that has a row but no bundle any more is not trained again, unless `again`
        is true. Raises ModelsError.
        """
        config = resolve_config(config)  # as bundles and rows on record have it
        system = f"{OURS} {config.name}"
        sealed = stages.find_sealed(config, self._var)
        if sealed is None and not self._again and self._has_config(system, config.digest):
            log.info("%s is on record", system)
            return
        sealed = sealed or stages.run_all(config, self._var)
        manifest = read_manifest(sealed)
        check_bundle(self.exam, manifest)
        sha256 = manifest.data.sha256
        folder = self._var / "runs" / config.name / run_digest(config, sha256)
        measured = Run(folder, config, sha256).measured()
        self._add_sealed(system, sealed, manifest, measured)

    def _add_sealed(
        self, system: str, sealed: Path, manifest: Manifest, measured: dict[str, Any]
    ) -> None:
        if self._on_record(system, manifest.bundle_id):
            return
        log.info("%s: measuring %s", system, sealed)
        engine = Engine.open(sealed, device="cpu", intra_op_threads=1)
        exam, effort = self.exam, manifest.defaults.effort
        a, b = exam.propensity_a, exam.propensity_b
        quality = None if self._again else sealed_quality(exam, manifest)
        quality = quality or evaluate(engine, exam.dataset, exam.part, exam.fields, a, b)

        def answer(text: str, k: int) -> list[str]:
            [prediction] = engine.predict([Query(text, k, effort)]).predictions
            return [engine.labels[int(row)].label_id for row in prediction.rows]

        p50, p99 = exam.time_queries(answer)
        row = Row(
            system=system,
            version=f"bundle {manifest.bundle_id[:12]} of commit {manifest.code.revision}",
            digest=manifest.bundle_id,
            settings={"effort": effort, "config": _digest(manifest.config)},
            metrics=quality.metrics,
            train_seconds=_training_cost(measured, "seconds"),
            train_cpu_seconds=_training_cost(measured, "cpu_seconds"),
            model_bytes=served_bytes(manifest),
            query_ms_p50=p50,
            query_ms_p99=p99,
            measured_by=self._provenance,
            errors=quality.errors,
            unseen=quality.unseen,
            right=exam.right(rank(engine, exam.part, exam.test_texts, TIMED_LABELS)),
        )
        self._save(row)

    def _measure_peer(self, peer: Peer, digest: str, settings: dict[str, Any]) -> Row:
        exam, matrices = self.exam, self._features
        labels = csr_matrix(exam.dataset.train.labels > 0, dtype=np.float32)
        log.info("%s: training on %d points, %d features", peer.title, *matrices.train.shape)
        stopwatch = _Stopwatch()
        peer.fit(matrices.train, labels)
        seconds, cpu_seconds = stopwatch.read()
        log.info("%s: trained in %.0f s", peer.title, seconds)
        ranked = exam.answers(lambda part, k: peer.rank(matrices.test[part], k), peer.title)
        figures = exam.score(ranked)
        uids = exam.dataset.labels.uids

        def answer(text: str, k: int) -> list[str]:
            [rows] = peer.rank(matrices.tfidf.transform([text]), k)
            return [uids[row] for row in rows if row >= 0]

        p50, p99 = exam.time_queries(answer)
        return Row(
            system=peer.title,
            version=peer.version,
            digest=digest,
            settings=settings | {"made_with": matrices.tfidf.version},
            metrics=figures.metrics,
            train_seconds=round(matrices.seconds + seconds, 1),
            train_cpu_seconds=round(matrices.cpu_seconds + cpu_seconds, 1),
            model_bytes=peer.size_bytes + matrices.tfidf.size_bytes,
            query_ms_p50=p50,
            query_ms_p99=p99,
            measured_by=self._provenance,
            errors=figures.errors,
            unseen=figures.unseen,
            right=exam.right(ranked),
        )

    @cached_property
    def _features(self) -> "_Features":
        stopwatch = _Stopwatch()
        tfidf = features.TfIdf()
        train = tfidf.fit(self.exam.train_texts)
        seconds, cpu_seconds = stopwatch.read()
        return _Features(tfidf, train, tfidf.transform(self.exam.test_texts), seconds, cpu_seconds)

    def _has_config(self, system: str, digest: str) -> bool:
        rows = self.comparison.rows
        return any(row.system == system and row.settings.get("config") == digest for row in rows)

    def _on_record(self, system: str, digest: str) -> bool:
        on_record = not self._again and self.comparison.find(system, digest) is not None
        if on_record:
            log.info("%s is on record", system)
        return on_record

    def _save(self, row: Row) -> None:
        self.comparison = self.comparison.with_row(row)
        self.comparison.save(self._out)
        log.info("%s: P@1 %.2f, P@5 %.2f", row.system, row.metrics["p1"], row.metrics["p5"])


@dataclass(frozen=True, slots=True)
class _Features:
    """The peers' matrices (n_points, n_features), and the cost of those of the training points."""

    tfidf: features.TfIdf
    train: csr_matrix
    test: csr_matrix
    seconds: float
    cpu_seconds: float


class _Stopwatch:
    """Counts wall seconds, and CPU seconds of all threads of this process, from its creation."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Wall seconds and CPU seconds so far."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def _training_cost(measured: dict[str, Any], name: str) -> float | None:
    """Seconds of pre-training and training together; None where the run did not record one of them.

    >>> _training_cost({"pretraining": {"seconds": 5.5}, "training": {"seconds": 60.0}}, "seconds")
    65.5
    """
    parts = [measured[stage] for stage in ("pretraining", "training") if stage in measured]
    if "training" not in measured or any(name not in part for part in parts):
        return None
    return round(sum(part[name] for part in parts), 1)


def _digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value; for a configuration this equals `Config.digest`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def served_bytes(manifest: Manifest) -> int:
    """Bytes of a bundle's files, without the encoder's precisions that the service does not use."""
    spare = set(manifest.encoder.variants.values()) - {manifest.encoder.file}
    return sum(entry.bytes for name, entry in manifest.files.items() if name not in spare)


def sealed_quality(exam: Exam, manifest: Manifest) -> QualityInfo | None:
    """The release gate's figures where the gate measured as the exam does, otherwise None.

    The bundle is on the exam's data (`check_bundle`), so the gate scored the same test points.
    """
    quality = manifest.quality
    if quality is None or quality.split != "test":
        return None
    same_constants = (quality.propensity_a, quality.propensity_b) == (
        exam.propensity_a,
        exam.propensity_b,
    )
    complete = bool(quality.errors)  # bundles of older code lack them
    same_filter = (manifest.filter is None) == (exam.dataset.test_filter is None)
    return quality if complete and same_constants and same_filter else None


def check_bundle(exam: Exam, manifest: Manifest) -> None:
    """Raise ComparisonError where a sealed bundle is not on the exam's data and text."""
    fields = manifest.config.get("data", {}).get("fields", "title")
    check_same(exam, f"bundle {manifest.bundle_id[:12]}", manifest.data.sha256, fields)


def check_same(exam: Exam, who: str, sha256: str, fields: str) -> None:
    """Raise ComparisonError where data or text fields of the system `who` are not the exam's."""
    ours = exam.dataset.sha256
    if sha256 != ours:
        raise ComparisonError(
            f"{who} is on data with SHA-256 {sha256[:12]}, the comparison on "
            f"{exam.dataset.name} with {ours[:12]}: all systems must have the same data, so leave "
            "it out"
        )
    if fields != exam.fields:
        raise ComparisonError(
            f"{who} reads {fields}, the comparison {exam.fields}: all systems must read the same "
            "text, so change --fields or leave it out"
        )
