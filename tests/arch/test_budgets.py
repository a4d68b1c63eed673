"""Size budgets: a file is read in one sitting, a function on one screen.

A file is measured by its code: docstrings, comments and blank lines are free.
"""

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_CODE_LINES = 400
MAX_FUNCTION_LINES = 60

# "path" or "path:function" -> why it may be longer. Empty is the aim.
EXCEPTIONS: dict[str, str] = {}


def sources() -> list[Path]:
    packages = ("service", "models", "loadtest")
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


NO_CODE = (
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
)


def code_lines(text: str) -> int:
    """How many lines hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def over_budget(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    found = {name} if code_lines(text) > MAX_CODE_LINES else set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.add(f"{name}:{node.name}")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_stay_within_their_budget(path: Path) -> None:
    assert over_budget(path) <= set(EXCEPTIONS)


def test_words_are_free_and_strings_are_code() -> None:
    assert code_lines('"""Doc."""\n\nx = 1  # one\n# two\ny = """\n"""\n') == 3


def test_every_exception_is_still_needed() -> None:
    found = {name for path in sources() for name in over_budget(path)}
    assert set(EXCEPTIONS) <= found
    assert all(EXCEPTIONS.values())
