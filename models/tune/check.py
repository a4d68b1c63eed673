"""Measures a sealed bundle's operating points again, and checks them against its goal.

It reads only the bundle and its run, nothing that the tuning left. So a fresh process checks what
the tuning promised. The exact answers come from the run, because the bundle may hold the label
vectors in fewer bits.
"""

from dataclasses import dataclass
from pathlib import Path

from models.errors import TuneError
from models.tune.candidate import Build, Candidate, Measurement
from models.tune.goal import Goal
from models.tune.subject import Judge, Searched, Subject, has_own_scores, size_of
from service.bundle.manifest import OperatingPoint
from service.bundle.verify import resolve, verify
from service.core.parts import open_index


@dataclass(frozen=True, slots=True)
class Checked:
    """The measurements as a table; `broken` is a sentence on the constraints that fail, or None."""

    text: str
    broken: str | None


def check_bundle(subject: Subject, data_sha256: str, bundle: Path, goal: Goal | None) -> Checked:
    """Measure every operating point, and compare the default one with `goal`.

    Without `goal` it is compared with the goal in the manifest. Raises TuneError where the bundle
    was trained on other data, and BundleError where it is broken.
    """
    folder = resolve(bundle)
    manifest = verify(folder)
    if manifest.data.sha256 != data_sha256:
        raise TuneError(f"{folder} is of other data than {subject.run_folder}: name its own run")
    goal = goal or Goal.of(manifest.goal)
    judge, info = Judge(subject), manifest.index
    index, own, size = open_index(folder, manifest), has_own_scores(info), size_of(folder, info)
    truth = judge.truth_of(index, own)
    build = Build.of(info.kind, info.params)
    found = {
        point.name: judge.measure(
            Searched(Candidate.of(build, point.params), index, point.name, truth, own, size),
            len(subject.queries),
            carefully=True,
        )
        for point in manifest.operating_points
    }
    default = manifest.defaults.effort
    misses = goal.misses(found[default], safely=False)
    lines = [f"{manifest.bundle_id[:12]}  {build}  {size / 1e6:.1f} MB", "", _HEAD]
    lines += [_line(point, found[point.name]) for point in manifest.operating_points]
    if misses:
        said = "; ".join(miss.words for miss in misses)
        return Checked("\n".join(lines), f"{default} of {folder} does not hold {goal}: {said}")
    return Checked("\n".join([*lines, "", f"{default} holds {goal}"]), None)


_HEAD = (
    f"{'effort':<10}{'recall@10':>10}{'P@1':>8}{'P@1 loss':>10}{'p50 us':>9}{'p99 us':>9}"
    f"{'sealed p99':>12}{'clocked p99':>13}{'cold p50':>10}{'cold p99':>10}"
)


def _line(point: OperatingPoint, found: Measurement) -> str:
    timing = found.timing
    return (
        f"{point.name:<10}{found.recall:10.4f}{found.p_at_1:8.2f}{found.p_at_1_loss:+10.2f}"
        f"{timing.p50:9.0f}{timing.p99:9.0f}{point.search_us_p99:12.0f}{timing.clocked_p99:13.0f}"
        f"{timing.cold_p50 or 0:10.0f}{timing.cold_p99 or 0:10.0f}"
    )
