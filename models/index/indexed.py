"""The label index that goes into a bundle: from the `index` stage, or from a tuning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from models.errors import RunError
from models.runs import CALIBRATION_FILE, Run
from service.bundle.manifest import (
    CalibrationInfo,
    GoalInfo,
    IndexInfo,
    MemoryInfo,
    OperatingPoint,
    RerankInfo,
)


@dataclass(frozen=True, slots=True)
class Indexed:
    """A built, measured and calibrated index; its files and calibration.json are in `folder`.

    A memory's files are in the run's folder. `goal` is the goal of the tuning that chose the
    default effort; None if the `index` stage chose it by recall.
    """

    folder: Path
    info: IndexInfo
    points: list[OperatingPoint]
    calibration: CalibrationInfo
    memory: MemoryInfo | None = None
    goal: GoalInfo | None = None

    @classmethod
    def of(cls, run: Run) -> Self:
        """The index of the `index` stage. Raises RunError if that stage has not run."""
        measured = run.measured()
        if not {"index", "operating_points", "calibration"} <= measured.keys():
            raise RunError(f"{run.folder} has no index: run `python -m models index` first")
        run.require(CALIBRATION_FILE, "index")
        return cls(
            folder=run.folder,
            info=IndexInfo.model_validate(measured["index"]),
            points=[OperatingPoint.model_validate(each) for each in measured["operating_points"]],
            calibration=CalibrationInfo.model_validate(measured["calibration"]),
            memory=memory_of(run),
        )


def memory_of(run: Run) -> MemoryInfo | None:
    """The memory of the `index` stage, None without one. Raises RunError before that stage."""
    measured = run.measured()
    if run.config.memory.kind != "none" and "memory" not in measured:
        raise RunError(f"{run.folder} has no memory yet: run `python -m models index` first")
    info = measured.get("memory", {}).get("info")
    return MemoryInfo.model_validate(info) if info else None


@dataclass(frozen=True, slots=True)
class SecondStage:
    """The second stage of a run, and the parameters that it adds to those of each effort."""

    info: RerankInfo
    params: dict[str, dict[str, int]]

    def add_to(self, points: list[OperatingPoint]) -> list[OperatingPoint]:
        """The operating points with these parameters; an effort without any goes without trees."""
        return [
            point.model_copy(update={"params": point.params | self.params.get(point.name, {})})
            for point in points
        ]


def second_stage_of(run: Run) -> SecondStage | None:
    """The second stage of the `index` stage, None without one. Raises RunError before it."""
    measured = run.measured()
    if run.config.rerank.kind != "none" and "rerank" not in measured:
        raise RunError(f"{run.folder} has no second stage yet: run `python -m models index` first")
    record = measured.get("rerank", {})
    if not record.get("info"):
        return None
    return SecondStage(RerankInfo.model_validate(record["info"]), record["params"])
