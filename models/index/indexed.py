"""What the release gate seals of a label index: the `index` stage's, or what `tune` chose."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from models.errors import RunError
from models.runs import CALIBRATION_FILE, Run
from service.bundle.manifest import CalibrationInfo, GoalInfo, IndexInfo, MemoryInfo, OperatingPoint


@dataclass(frozen=True, slots=True)
class Indexed:
    """A built, measured and calibrated index; its files and calibration.json lie in `folder`.

    The files of a memory lie in the run's folder. `goal` is what the default effort was chosen to
    hold; None where it was chosen by recall alone.
    """

    folder: Path
    info: IndexInfo
    points: list[OperatingPoint]
    calibration: CalibrationInfo
    memory: MemoryInfo | None = None
    goal: GoalInfo | None = None

    @classmethod
    def of(cls, run: Run) -> Self:
        """What the `index` stage left in the run. Raises RunError."""
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
    """The memory that the `index` stage has kept, if any. Raises RunError where it has not run."""
    measured = run.measured()
    if run.config.memory.kind != "none" and "memory" not in measured:
        raise RunError(f"{run.folder} has no memory yet: run `python -m models index` first")
    kept = measured.get("memory", {}).get("info")
    return MemoryInfo.model_validate(kept) if kept else None
