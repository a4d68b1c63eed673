"""Asking apt: stand-in commands on the PATH, for what a test machine's lists hold is not known."""

import os
from pathlib import Path

import pytest

from models.data import apt_index
from models.errors import AptError

PACKAGES = "Package: a\nDescription: first\n\nPackage: b\nDescription: second\n"


def install(folder: Path, name: str, script: str) -> Path:
    """A command of this name that runs a shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder whose commands come before those of the machine."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_packages_come_as_lines_whatever_is_installed(commands):
    (commands / "packages").write_text(PACKAGES)
    install(
        commands,
        "apt-cache",
        f'case "$*" in *Dir::State::status=/dev/null*dumpavail) cat {commands}/packages;; esac',
    )
    assert b"".join(apt_index.package_lines()).decode() == PACKAGES


def test_descriptions_come_from_the_english_lists_that_are_there(commands, monkeypatch):
    (commands / "Translation-en").write_text("Package: a\n")
    (commands / "more-en").write_text("Package: b\n")
    listed = f"echo {commands}/Translation-en; echo {commands}/more-en; echo {commands}/gone"
    install(commands, "apt-get", f'case "$*" in *"Language: en") {listed};; esac')
    helper = install(
        commands, "helper", 'while [ "$1" != cat-file ]; do shift; done; shift; cat $*'
    )
    monkeypatch.setattr(apt_index, "HELPER", str(helper))
    assert list(apt_index.description_lines()) == [b"Package: a\n", b"Package: b\n"]


def test_no_list_with_long_descriptions_says_what_to_run(commands):
    install(commands, "apt-get", "true")
    with pytest.raises(AptError, match=r"run `apt-get update -o Acquire::Languages=en` as root"):
        apt_index.description_lines()


def test_a_machine_without_apt_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AptError, match=r"apt-cache cannot be run .* run it on Debian or Ubuntu"):
        list(apt_index.package_lines())


def test_a_command_that_fails_is_quoted(commands):
    install(
        commands, "apt-cache", "echo Package: a; echo W: hm >&2; echo E: no lists >&2; exit 100"
    )
    with pytest.raises(AptError, match="apt-cache failed: E: no lists"):
        list(apt_index.package_lines())


def test_a_reader_that_stops_early_leaves_no_process_behind(commands):
    install(commands, "apt-cache", "while true; do echo Package: a; done")
    lines = apt_index.package_lines()
    assert next(lines) == b"Package: a\n"
    lines.close()
