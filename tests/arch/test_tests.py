"""Where tests and what they share stand, so that both are found without a search.

What several test modules need is in tests/support. A test stands in the folder of its module and
bears its name, maybe with the aspect behind it: service/gate/guard.py is tested by
tests/service/gate/test_guard.py, and test_guard_keys.py may stand beside it.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PACKAGES = ("service", "models", "loadtest")

# A test of no single module -> what it tests instead.
SUBSYSTEMS = {
    "models/index/test_index_stage.py": "the stage that builds an index, with every kind of it",
    "models/test_wrong_input.py": "what every command says to input that nobody can use",
    "service/api/test_contract.py": "every route, against the schema that the service publishes",
    "service/process/test_renewal.py": "a swap in a group of workers, from the admin on",
    "service/ui/test_access.py": "the page in a browser: keys",
    "service/ui/test_asking.py": "the page in a browser: a query and its answer",
    "service/ui/test_controls.py": "the page in a browser: what can be set",
    "service/ui/test_failures.py": "the page in a browser: what goes wrong",
}


def imports_of(path: Path) -> set[str]:
    """Modules, or names in them, that a file imports from the tests."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("tests.")}


def is_test_module(part: str) -> bool:
    return part.startswith("test_") or part == "conftest"


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda p: str(p.relative_to(TESTS))
)
def test_nothing_is_imported_from_a_test_module(path: Path) -> None:
    taken = {name for name in imports_of(path) if any(map(is_test_module, name.split(".")))}
    assert not taken, f"move what {path.relative_to(ROOT)} imports to tests/support: {taken}"


def has_module(test: Path) -> bool:
    """Whether the module that a test is named after stands in the same folder of the sources."""
    folder = ROOT / test.parent.relative_to(TESTS)
    name = test.stem.removeprefix("test_")
    if name == "main":
        return (folder / "__main__.py").exists()
    words = name.split("_")
    return any((folder / f"{'_'.join(words[:n])}.py").exists() for n in range(len(words), 0, -1))


def module_tests() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((TESTS / package).rglob("test_*.py"))]


@pytest.mark.parametrize("path", module_tests(), ids=lambda p: str(p.relative_to(TESTS)))
def test_a_test_stands_where_its_module_stands(path: Path) -> None:
    name = path.relative_to(TESTS).as_posix()
    assert has_module(path) != (name in SUBSYSTEMS), f"{name}: no module, or needlessly excused"


def test_every_excused_test_is_there() -> None:
    assert set(SUBSYSTEMS) <= {path.relative_to(TESTS).as_posix() for path in module_tests()}
