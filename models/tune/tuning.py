"""Runs a tuning: builds candidates, halves them, confirms the best one, and chooses the efforts.

`Workbench` does the measuring, and `models.seal.release` seals the result.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from models.config import Config, IndexConfig
from models.errors import ModelsError, TuneError
from models.index import calibrate
from models.index.efforts import machine
from models.index.indexed import Indexed, memory_of
from models.index.registry import KINDS
from models.progress import track
from models.runs import CALIBRATION_FILE, Run
from models.tune.builds import thinned, variants
from models.tune.candidate import Build, Candidate, Measurement
from models.tune.goal import Goal, choose, nearest
from models.tune.halving import halve
from models.tune.report import Report, last_of_each
from models.tune.subject import Subject
from models.tune.workbench import Workbench
from service.bundle.manifest import EFFORTS, EXACT, OperatingPoint

log = logging.getLogger(__name__)

_CONFIRMED_AT_MOST: Final = 5


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asks of a tuning. Without `kinds` it tries all kinds that fit the run.

    `again` measures anew what is on record. `command` stands in the report.
    """

    goal: Goal
    kinds: tuple[str, ...] = ()
    again: bool = False
    command: str = "python -m models tune"

    def wants_points(self, run: Run) -> bool:
        """Whether any of the kinds needs training points to be built."""
        return any(KINDS[name].wants_points for name in kinds_for(run.config, self.kinds))


def tune(subject: Subject, run: Run, request: Request) -> tuple[Report, Indexed | None]:
    """Find the best index, and write tune.json and tune.html into the run. Raises ModelsError.

    Returns the report and the index to seal. The latter is None where no candidate meets the goal
    both in the search and when it is measured again.
    """
    from models.tune.page import write_page  # with matplotlib, which takes a second

    bench = Workbench(subject, again=request.again)
    goal = request.goal
    builds = _build_all(bench, run.config, request.kinds)
    candidates = [each for build in builds for each in thinned(bench.candidates(build))]
    log.info("%d candidates of %d indexes", len(candidates), len(builds))
    rungs = halve(candidates, bench.n_queries, goal, bench.measure)
    last, earlier = last_of_each(rungs)
    chosen, fallen = _confirmed(bench, goal, choose(goal, last))
    verdict = nearest(goal, fallen or last)
    if chosen is not None:
        verdict = (
            f"chosen: {chosen.candidate}: recall@10 {chosen.recall:.4f}, p99 "
            f"{chosen.timing.p99:.0f} us, {chosen.index_bytes / 1e6:.1f} MB; it holds {goal}"
        )
    report = Report(
        name=run.config.name,
        n_labels=len(subject.material.vectors),
        goal=goal,
        machine=machine(),
        command=request.command,
        verdict=verdict,
        last=tuple(last),
        earlier=tuple(earlier),
        chosen=chosen,
    )
    folder = bench.folder.parent
    report.save(folder)
    log.info("%s shows what was found", write_page(report, folder))
    return report, None if chosen is None else _indexed(bench, chosen, goal, run)


def kinds_for(config: Config, asked: Sequence[str]) -> list[str]:
    """The kinds that fit a run, or only those in `asked`. Raises TuneError if one does not fit."""
    fitting = [name for name in KINDS if _fits(config, name)]
    for name in asked:
        if name not in fitting:
            raise TuneError(f"--kinds {name} does not fit this run: name some of {fitting}")
    return [name for name in fitting if name in asked or not asked]


def _fits(config: Config, kind: str) -> bool:
    """Whether the run's configuration is valid with this kind."""
    # The memory's weight was chosen for scores of one metric, and would be wrong for another.
    if config.memory.kind != "none" and KINDS[kind].metric != KINDS[config.index.kind].metric:
        return False
    raw = config.model_dump()
    try:
        Config.model_validate(raw | {"index": raw["index"] | {"kind": kind}})
    except ValidationError:
        return False
    return True


def scored_by_vectors(config: Config) -> bool:
    """Whether the label vectors are the model, so that exact search over them is correct."""
    return any(KINDS[name].metric == "inner_product" for name in kinds_for(config, ()))


def _build_all(bench: Workbench, config: Config, asked: Sequence[str]) -> list[Build]:
    """Build every variant of every kind.

    Skips a variant that fails, if no kinds were `asked` for.
    """
    n_labels = len(bench.subject.material.vectors)
    wanted = [
        each
        for kind in kinds_for(config, asked)
        for each in variants(config.index.model_copy(update={"kind": kind}), n_labels)
    ]
    builds: dict[Build, None] = {}
    for each in track(wanted, len(wanted), "building indexes"):
        try:
            builds[bench.build(each)] = None
        except ModelsError as exc:
            if asked:
                raise
            log.info("left out: %s: %s", each.kind, exc)
    if not builds:
        raise TuneError("no kind of index can be built from this run")
    return list(builds)


def _confirmed(
    bench: Workbench, goal: Goal, holding: Sequence[Measurement]
) -> tuple[Measurement | None, list[Measurement]]:
    """Measure the best candidates once more, until one meets the goal again.

    Returns that one, or None, and the new measurements of those that failed before it.
    """
    fallen: list[Measurement] = []
    for each in holding[:_CONFIRMED_AT_MOST]:
        again = bench.measure_anew(each.candidate)
        misses = goal.misses(again, safely=False)
        if not misses:
            return again, fallen
        log.info("%s, measured again: %s", each.candidate, misses[0].words)
        fallen.append(again)
    return None, fallen


def _indexed(bench: Workbench, chosen: Measurement, goal: Goal, run: Run) -> Indexed:
    """The chosen index, with its four efforts measured and its scores calibrated."""
    build, subject, config = chosen.candidate.build, bench.subject, run.config
    efforts = pick_efforts(bench, chosen, config.index)
    found = {chosen.candidate: chosen}
    found |= {each: bench.measure_anew(each) for each in efforts.values() if each not in found}
    points = [_point(name, subject, found[each]) for name, each in efforts.items()]
    folder, info = bench.folder_of(build), bench.infos[build]
    answers = bench.open(build).search(subject.queries, calibrate.DEPTH, EXACT)
    probable = subject.memory is not None or info.metric == "probability"
    bias = None if probable else config.method.logit_bias
    fitted, described = calibrate.calibrate(answers, subject.validation, bias)
    calibrate.write_calibration(folder / CALIBRATION_FILE, fitted)
    return Indexed(folder, info, points, described, memory_of(run), goal.sealed())


def pick_efforts(
    bench: Workbench, chosen: Measurement, config: IndexConfig
) -> dict[str, Candidate]:
    """Choose the candidates of the four efforts from the grid of the chosen index.

    `balanced` is the chosen candidate. `fast` is the cheapest one that reaches `recall_fast`, or
    else the next cheaper than the chosen one. `thorough` is the cheapest above the chosen one that
    reaches `recall_thorough`, or else the one with the best recall. `exact` has no parameters. At
    the ends of a grid two efforts may be the same candidate.
    """
    grid = bench.candidates(chosen.candidate.build)
    place = grid.index(chosen.candidate)
    fast = thorough = chosen.candidate
    for each in grid[:place]:
        fast = each
        if bench.sure_recall(each) >= config.recall_fast:
            break
    best = chosen.sure_recall
    for each in grid[place + 1 :]:
        recall = bench.sure_recall(each)
        if recall > best:
            best, thorough = recall, each
        if best >= config.recall_thorough:
            break
    exact = Candidate(chosen.candidate.build)
    return dict(zip(EFFORTS, (fast, chosen.candidate, thorough, exact), strict=True))


def _point(name: str, subject: Subject, found: Measurement) -> OperatingPoint:
    return OperatingPoint(
        name=name,
        params=subject.whole(dict(found.candidate.params)),
        recall_at_10=round(found.recall, 5),
        p_at_1=found.p_at_1,
        p_at_5=found.p_at_5,
        search_us_p50=found.timing.p50,
        search_us_p99=found.timing.p99,
        machine=machine(),
    )
