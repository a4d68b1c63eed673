"""Reads the Dockerfile far enough to ask what ends up in an image: stages, ancestors, copies."""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class Stage:
    """One FROM and the instructions below it, (keyword, argument) each."""

    name: str
    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, keyword: str) -> list[str]:
        """The arguments of every instruction of one kind."""
        return [argument for key, argument in self.steps if key == keyword]

    def copied(self) -> list[tuple[str | None, list[str]]]:
        """(stage copied from, or None for the build context; sources) of every COPY."""
        found: list[tuple[str | None, list[str]]] = []
        for argument in self.arguments("COPY"):
            words = argument.split()
            stages = [word.removeprefix("--from=") for word in words if word.startswith("--from=")]
            sources = [word for word in words if not word.startswith("--")][:-1]
            found.append((stages[0] if stages else None, sources))
        return found


def read_stages(path: Path = ROOT / "Dockerfile") -> dict[str, Stage]:
    """Every stage by name; a line that ends in a backslash goes on in the next one."""
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()[:1] != "#"
    ]
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        keyword, _, argument = line.strip().partition(" ")
        if keyword == "FROM":
            parent, _, name = argument.partition(" AS ")
            stage = stages[name] = Stage(name, parent)
        elif keyword and stage is not None:
            stage.steps.append((keyword, argument.strip()))
    return stages


def ancestry(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and what it is FROM, nearest first; an image from a registry is left out."""
    found: list[Stage] = []
    while name in stages:
        found.append(stages[name])
        name = stages[name].parent
    return found


def everything_in(stages: dict[str, Stage], name: str) -> list[Stage]:
    """Every stage that can leave something in an image: ancestors and what is copied from."""
    found: dict[str, Stage] = {}
    waiting = [name]
    while waiting:
        for stage in ancestry(stages, waiting.pop()):
            if stage.name not in found:
                found[stage.name] = stage
                waiting += [source for source, _ in stage.copied() if source]
    return list(found.values())


def environment(stages: dict[str, Stage], name: str) -> dict[str, str]:
    """The ENV that an image starts its process with."""
    variables: dict[str, str] = {}
    for stage in reversed(ancestry(stages, name)):
        for argument in stage.arguments("ENV"):
            variables |= dict(re.findall(r"([A-Za-z_]\w*)=(\S*)", argument))
    return variables


def effective(stages: dict[str, Stage], name: str, keyword: str) -> str:
    """The argument that wins for an instruction of which only the last one counts."""
    for stage in ancestry(stages, name):
        if arguments := stage.arguments(keyword):
            return arguments[-1]
    return ""
