"""Every error the offline half raises on purpose, in one tree.

    ModelsError
    ├── DataError      a data file does not hold what its format promises
    ├── ConfigError    the training configuration has an unknown key or a value not allowed
    ├── AptError       apt is not on this machine, or its lists do not hold what is needed
    ├── SourceError    a pretrained source has no weights or no tokenizer where it says
    ├── RunError       a run folder lacks what a stage needs, or holds something else
    ├── TrainingError  the loss stopped being a number
    ├── ReleaseError   a measured figure is below what the release gate demands
    ├── FoldError      changes to a catalogue cannot be folded into this bundle, or there are none
    ├── TuneError      no index holds what is asked of it, or a tuned bundle no longer does
    ├── ComparisonError  systems cannot be compared: other data, no markers, nothing to compare
    └── PeerMissing    a peer's package is not installed

Each message is one sentence that names the thing to look at, what was expected of it and what was
found. Wrong arguments in code are plain ValueError, not part of this tree.
"""

from pathlib import Path

MAX_FOUND_CHARS = 120


class ModelsError(Exception):
    """Base of the tree; the command line prints it without a traceback."""


class DataError(ModelsError):
    """Raised when a data file is missing or one of its lines breaks its format.

    `line` counts from 1; None means that the file as a whole is meant.

    >>> print(DataError(Path("trn.jsonl"), 7, "a JSON object", "[1, 2]"))
    trn.jsonl, line 7: expected a JSON object, found [1, 2]
    """

    def __init__(self, path: Path, line: int | None, expected: str, found: str) -> None:
        # All four go to args, so that the error survives pickling between processes.
        super().__init__(path, line, expected, found)
        self.path = path
        self.line = line
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        where = str(self.path) if self.line is None else f"{self.path}, line {self.line}"
        return f"{where}: expected {self.expected}, found {_shorten(self.found)}"


class ConfigError(ModelsError):
    """Raised while the configuration is read; the sentence names the file and the key."""


class AptError(ModelsError):
    """Raised when a data set cannot be made of apt's index; the sentence says what to run."""


class SourceError(ModelsError):
    """Raised when an encoder source cannot be found or lacks a file."""


class RunError(ModelsError):
    """Raised when a stage is started on a run folder that cannot feed it."""


class TrainingError(ModelsError):
    """Raised when training cannot go on; the sentence names the step."""


class ReleaseError(ModelsError):
    """Raised when the release gate refuses to seal a bundle."""


class FoldError(ModelsError):
    """Raised when changes to a catalogue cannot become part of a bundle."""


class TuneError(ModelsError):
    """Raised when no candidate, or a sealed point no longer, holds the constraints."""


class ComparisonError(ModelsError):
    """Raised when systems cannot stand in one table, or the table has no place to go to."""


class PeerMissing(ModelsError):
    """Raised when a peer is asked for whose package is not installed; says what to install."""


def _shorten(found: str) -> str:
    if len(found) <= MAX_FOUND_CHARS:
        return found
    return f"{found[:MAX_FOUND_CHARS]}... ({len(found)} characters)"
