"""Reads apt's lists as lines: the packages, and their long descriptions in English.

It runs apt's own commands, which need no root and know where the lists lie and how they are packed.
It downloads nothing, and does not care which packages are installed. models.data.debian parses the
lines.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.errors import AptError

# Without a status file no package counts as installed. Debian's images for containers turn
# languages off.
_OPTIONS = ("-o", "Dir::State::status=/dev/null", "-o", "Acquire::Languages=en")
_TRANSLATIONS = ("--format", "$(FILENAME)", "Created-By: Translations", "Language: en")
HELPER = "/usr/lib/apt/apt-helper"


def package_lines() -> Iterator[bytes]:
    """The lines of `apt-cache dumpavail`: a paragraph for the best version of every package.

    Raises AptError.
    """
    return _lines(["apt-cache", *_OPTIONS, "dumpavail"])


def description_lines() -> Iterator[bytes]:
    """The lines of every English translation list, which holds the long descriptions.

    Raises AptError.
    """
    targets = _lines(["apt-get", *_OPTIONS, "indextargets", *_TRANSLATIONS])
    names = [line.decode().strip() for line in targets]
    files = [name for name in names if Path(name).is_file()]
    if not files:
        raise AptError(
            "apt's lists are empty or hold no long descriptions: "
            "run `apt-get update -o Acquire::Languages=en` as root, then this again"
        )
    return _lines([HELPER, *_OPTIONS, "cat-file", *files])


def _lines(command: Sequence[str]) -> Iterator[bytes]:
    # Standard error goes to a file: a pipe that nobody reads could fill up and block the command.
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"LC_ALL": "C.UTF-8"},
            )
        except OSError as exc:
            raise AptError(
                f"{command[0]} cannot be run ({exc.strerror}): this needs apt, "
                "so run it on Debian or Ubuntu"
            ) from exc
        with process:
            assert process.stdout is not None
            yield from process.stdout
        if process.returncode:
            errors.seek(0)
            message = errors.read().decode(errors="replace").strip() or "it gave no reason"
            raise AptError(f"{command[0]} failed: {message.splitlines()[-1]}")
