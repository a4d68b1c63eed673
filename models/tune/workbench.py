"""Builds label indexes, opens them as the service does, and records how they search.

Indexes and measurements stay in a folder of the run, which is named by a digest of the model. So a
tuning that was killed goes on where it stopped, and a tuning for another goal uses them again.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from models.config import IndexConfig
from models.index.efforts import machine
from models.index.registry import KINDS, build_label_index
from models.progress import track
from models.tune.candidate import Build, Candidate, Measurement
from models.tune.ledger import LEDGER_FILE, Ledger
from models.tune.subject import Judge, Searched, Subject, has_own_scores, size_of
from service.atomic import write_text
from service.bundle.manifest import EXACT, IndexInfo
from service.core.index.protocol import LabelIndex

log = logging.getLogger(__name__)

TUNE_FOLDER: Final = "tune"
_BUILT_FILE: Final = "built.json"


class Workbench:
    """Measures candidates of one subject, each only once: later calls read the record.

    `again` ignores the record of earlier tunings.
    """

    def __init__(self, subject: Subject, *, again: bool = False) -> None:
        self.folder = subject.run_folder / TUNE_FOLDER / subject.digest()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger.open(self.folder / LEDGER_FILE, machine(), again=again)
        self.infos: dict[Build, IndexInfo] = {}
        self._judge = Judge(subject)
        self.subject = self._judge.subject
        self._grids: dict[Build, list[dict[str, int]]] = {}
        self._opened: tuple[Build, Searched] | None = None

    @property
    def n_queries(self) -> int:
        """Number of validation queries."""
        return len(self.subject.queries)

    def folder_of(self, build: Build) -> Path:
        """The folder of a built index."""
        digest = hashlib.sha256(repr(build.settings).encode()).hexdigest()[:8]
        return self.folder / f"{build.kind}-{digest}"

    def build(self, config: IndexConfig) -> Build:
        """Build the index that `config` describes, unless it is built already.

        Raises ModelsError.
        """
        kind = KINDS[config.kind]
        build = Build.of(kind.name, kind.params(config))
        folder = self.folder_of(build)
        built = folder / _BUILT_FILE
        if not built.is_file():
            shutil.rmtree(folder, ignore_errors=True)  # left by a build that was killed
            folder.mkdir()
            started = time.perf_counter()
            info = build_label_index(self.subject.material, config, folder)
            log.info("built %s in %.1f s", build, time.perf_counter() - started)
            write_text(built, info.model_dump_json(indent=1))
        self.infos[build] = IndexInfo.model_validate_json(built.read_bytes())
        self._grids[build] = kind.grid(config, self.infos[build].n_rows)
        return build

    def candidates(self, build: Build) -> list[Candidate]:
        """One candidate for each entry of the index's grid, the cheapest first."""
        return [Candidate.of(build, params) for params in self._grids[build]]

    def measure(self, wanted: Sequence[Candidate], n: int, last: bool) -> list[Measurement]:
        """Measure each candidate on the first n queries, carefully if `last`; keeps their order."""
        found: dict[Candidate, Measurement] = {}
        # Sorted by index, so that each index is opened once.
        in_turn = sorted(wanted, key=lambda each: str(each.build))
        for candidate in track(in_turn, len(in_turn), f"measuring on {n:,} queries"):
            on_record = self.ledger.find(candidate, n, last)
            if on_record is None:
                on_record = self._judge.measure(self._searched(candidate), n, carefully=last)
                self.ledger.add(on_record, last)
            found[candidate] = on_record
        return [found[candidate] for candidate in wanted]

    def measure_anew(self, candidate: Candidate) -> Measurement:
        """Measure a candidate carefully on all queries, even if it is on record."""
        return self._judge.measure(self._searched(candidate), self.n_queries, carefully=True)

    def sure_recall(self, candidate: Candidate) -> float:
        """Recall@10 on all queries, less two standard errors. Measures no time."""
        recall, error = self._searched(candidate).recall(self.subject.queries)
        return recall - 2 * error

    def open(self, build: Build) -> LabelIndex:
        """Open a built index with an effort for each entry of its grid, and `exact`.

        The index that was opened last stays open.
        """
        return self._searched(Candidate(build)).index

    def _searched(self, candidate: Candidate) -> Searched:
        build = candidate.build
        if self._opened is None or self._opened[0] != build:
            efforts = {effort_name(params): params for params in self._grids[build]} | {EXACT: {}}
            folder, info = self.folder_of(build), self.infos[build]
            index, own = self.subject.open(folder, info, efforts), has_own_scores(info)
            exact, size = self._judge.truth_of(index, own), size_of(folder, info)
            self._opened = build, Searched(candidate, index, EXACT, exact, own, size)
        effort = effort_name(dict(candidate.params))
        return replace(self._opened[1], candidate=candidate, effort=effort)


def effort_name(params: Mapping[str, int]) -> str:
    """The name of the effort for an entry of a grid; an entry without parameters is `exact`.

    >>> effort_name({"ef_search": 32}), effort_name({})
    ('ef_search=32', 'exact')
    """
    return " ".join(f"{name}={value}" for name, value in sorted(params.items())) or EXACT
