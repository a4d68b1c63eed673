"""One tuning from the candidates to what is sealed: search, confirm, choose the efforts, report.

Pure orchestration over a Workbench; sealing itself is models.seal.release.
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
from models.index.indexed import Indexed
from models.index.registry import KINDS
from models.progress import track
from models.runs import CALIBRATION_FILE, Run
from models.tune.builds import thinned, variants
from models.tune.candidate import Build, Candidate, Measurement
from models.tune.goal import Goal, choose, nearest
from models.tune.halving import halve
from models.tune.page import write_page
from models.tune.report import Report, last_of_each
from models.tune.subject import Subject
from models.tune.workbench import Workbench
from service.bundle.manifest import EFFORTS, EXACT, OperatingPoint

log = logging.getLogger(__name__)

_CONFIRMED_AT_MOST: Final = 5


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for; no `kinds` are all that fit, `again` ignores what is on record."""

    goal: Goal
    kinds: tuple[str, ...] = ()
    again: bool = False
    command: str = "python -m models tune"

    def wants_points(self, run: Run) -> bool:
        """Whether any of the kinds is built from training points too."""
        return any(KINDS[name].wants_points for name in kinds_for(run.config, self.kinds))


def tune(subject: Subject, run: Run, request: Request) -> tuple[Report, Indexed | None]:
    """Search, leave tune.json and tune.html in the run, and say what to seal. Raises ModelsError.

    Nothing is to be sealed where no candidate holds the goal, when measured again too.
    """
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
    """The kinds that fit a run, or those of them that are asked for. Raises TuneError."""
    fitting = [name for name in KINDS if _fits(config, name)]
    for name in asked:
        if name not in fitting:
            raise TuneError(f"--kinds {name} does not fit this run: name some of {fitting}")
    return [name for name in fitting if name in asked or not asked]


def _fits(config: Config, kind: str) -> bool:
    """Whether the run could have been configured with this kind."""
    # A memory was weighed beside scores of one meaning, and would be wrong beside others.
    if config.memory.kind != "none" and KINDS[kind].metric != KINDS[config.index.kind].metric:
        return False
    raw = config.model_dump()
    try:
        Config.model_validate(raw | {"index": raw["index"] | {"kind": kind}})
    except ValidationError:
        return False
    return True


def scored_by_vectors(config: Config) -> bool:
    """Whether the label vectors are the model, so that exact search over them is the truth."""
    return any(KINDS[name].metric == "inner_product" for name in kinds_for(config, ()))


def _build_all(bench: Workbench, config: Config, asked: Sequence[str]) -> list[Build]:
    """Every variant of every kind, built or found; a kind that cannot be is left out unasked."""
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
    """The first that holds the goal when measured once more, and those that no longer did."""
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
    """The chosen index with its four efforts measured, and calibrated."""
    build, subject, config = chosen.candidate.build, bench.subject, run.config
    efforts = pick_efforts(bench, chosen, config.index)
    found = {chosen.candidate: chosen}
    found |= {each: bench.measure_anew(each) for each in efforts.values() if each not in found}
    points = [_point(name, subject, found[each]) for name, each in efforts.items()]
    folder, info = bench.folder_of(build), bench.infos[build]
    answers = bench.open(build).search(subject.queries, calibrate.DEPTH, EXACT)
    probable = subject.memory is not None or info.metric == "probability"
    bias = None if probable else config.method.logit_bias
    fitted, described = calibrate.calibrate(
        answers.scores, answers.rows, subject.truth, bias, subject.filtered
    )
    calibrate.write_calibration(folder / CALIBRATION_FILE, fitted)
    return Indexed(folder, info, points, described, subject.memory, goal.sealed())


def pick_efforts(
    bench: Workbench, chosen: Measurement, config: IndexConfig
) -> dict[str, Candidate]:
    """`balanced` is the chosen one; `fast` a cheaper entry of its grid, `thorough` a dearer one.

    `fast` is the cheapest that reaches the configured recall, or else the next cheaper; `thorough`
    the first that reaches its recall, or else the best there is. At the end of a grid two efforts
    are the same.
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
