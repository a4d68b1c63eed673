"""What apt knows, as streams of lines: its packages, and their long descriptions in English.

Asks apt's own commands, which need no root and know where the lists are and how they are packed.
Nothing is downloaded, and what is installed does not matter: the lists decide. What the lines mean
is models.data.debian's.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.errors import AptError

# Without a status file nothing counts as installed. Images of Debian turn languages off.
_OPTIONS = ("-o", "Dir::State::status=/dev/null", "-o", "Acquire::Languages=en")
_TRANSLATIONS = ("--format", "$(FILENAME)", "Created-By: Translations", "Language: en")
HELPER = "/usr/lib/apt/apt-helper"


def package_lines() -> Iterator[bytes]:
    """The lines of `apt-cache dumpavail`: a paragraph for the best version of every package.

    Raises AptError.
    """
    return _lines(["apt-cache", *_OPTIONS, "dumpavail"])


def description_lines() -> Iterator[bytes]:
    """The lines of every English translation list, which is where long descriptions are.

    Raises AptError.
    """
    listed = _lines(["apt-get", *_OPTIONS, "indextargets", *_TRANSLATIONS])
    names = [line.decode().strip() for line in listed]
    files = [name for name in names if Path(name).is_file()]
    if not files:
        raise AptError(
            "apt's lists are empty or hold no long descriptions: "
            "run `apt-get update -o Acquire::Languages=en` as root, then this again"
        )
    return _lines([HELPER, *_OPTIONS, "cat-file", *files])


def _lines(command: Sequence[str]) -> Iterator[bytes]:
    with tempfile.TemporaryFile() as said:  # a pipe nobody reads could fill up and block
        try:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=said,
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
            said.seek(0)
            words = said.read().decode(errors="replace").strip() or "no word about why"
            raise AptError(f"{command[0]} failed: {words.splitlines()[-1]}")
