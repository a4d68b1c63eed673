"""All errors that the offline half raises on purpose, as one tree.

    ModelsError
    ├── DataError        a data file is missing or breaks its format
    ├── ConfigError      the configuration has an unknown key or a wrong value
    ├── AptError         apt is not on this machine, or its lists lack what the data set needs
    ├── SourceError      a pretrained source is missing, or lacks weights or a tokenizer
    ├── RunError         a run folder lacks a file, belongs to other data, or cannot be written
    ├── TrainingError    training cannot go on: a loss that is no number, no such device
    ├── ReleaseError     a measured figure is below its limit in the configuration
    ├── FoldError        changes to a catalogue cannot be folded into this bundle, or there are none
    ├── TuneError        no index reaches the goal, or a sealed bundle no longer does
    ├── ComparisonError  systems cannot be compared: other data, no markers, nothing to compare
    └── PeerMissing      the package of an extra is not installed

Each message is one sentence. It names the file, key or run, the value, and the value that would be
right. Wrong arguments in code are plain ValueErrors, outside this tree.
"""

from pathlib import Path

MAX_FOUND_CHARS = 120
"""Our choice: a broken line still fits a screen, and its start tells what is wrong."""


class ModelsError(Exception):
    """Base of the tree; the command line prints it without a traceback."""


class DataError(ModelsError):
    """Raised when a data file is missing or one of its lines breaks its format.

    `line` counts from 1; None stands for the file as a whole.

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
    """Raised when apt's lists cannot become a data set; the sentence says what to run."""


class SourceError(ModelsError):
    """Raised when a pretrained encoder is missing, lacks a file, or cannot be loaded."""


class RunError(ModelsError):
    """Raised when a run folder lacks what a stage needs, is of other data, or cannot be written."""


class TrainingError(ModelsError):
    """Raised when training cannot start or go on; the sentence names the step or the key."""


class ReleaseError(ModelsError):
    """Raised when a precision, an index or a bundle misses a limit of the configuration."""


class FoldError(ModelsError):
    """Raised when changes to a catalogue cannot be folded into a bundle."""


class PushError(ModelsError):
    """Raised when another push has moved the pointer of an object store meanwhile."""


class TuneError(ModelsError):
    """Raised when no index, or not the sealed one any more, reaches the goal of a tuning."""


class ComparisonError(ModelsError):
    """Raised when systems cannot be compared, or the page has no markers for the table."""


class PeerMissing(ModelsError):
    """Raised when the package of an extra is not installed; the sentence says how to install it."""


def _shorten(found: str) -> str:
    if len(found) <= MAX_FOUND_CHARS:
        return found
    return f"{found[:MAX_FOUND_CHARS]}... ({len(found)} characters)"
