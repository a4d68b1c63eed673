"""Tests go through public seams; what still reaches behind one is counted here, with its reason.

A private name is one of `service`, `models` or `loadtest` with a leading underscore, which a test
reads, replaces or imports. Scripts in tests/bench measure and assert nothing: they are left out.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PACKAGES = ("service", "models", "loadtest")
UNDERSCORE_IN_PUBLIC = {"_exit"}  # os._exit, the documented way out of a fork

# File -> how often, and why no public seam shows the same.
EXCEPTIONS: dict[str, tuple[int, str]] = {
    "models/data/test_tokens.py": (1, "a small block, so that a short corpus has several"),
    "models/encoders/test_build.py": (1, "a small block, so that a few texts make several"),
    "models/encoders/test_frozen.py": (1, "a small block, so that a few texts make several"),
    "models/export/test_export_onnx.py": (1, "transformers tells its attention nowhere else"),
    "models/index/test_memory.py": (1, "a slow twin of one term, which only a whole choice shows"),
    "models/methods/test_astra.py": (3, "dropout of queries, which only a mean over steps shows"),
    "models/methods/test_contrastive.py": (3, "that a pretraining is not done twice"),
    "models/methods/test_elias.py": (4, "terms of the loss by a slow twin"),
    "models/test_teacher.py": (1, "that nothing is computed twice"),
    "models/training/test_loop.py": (3, "which rows a step takes, and that none is taken again"),
    "models/training/test_negatives.py": (1, "a low bound, so that few labels are many"),
    "models/training/test_path_scores.py": (1, "a small block, so that few rows make several"),
    "models/tune/test_tuning_efforts.py": (1, "the second measurement, without a whole tuning"),
    "service/api/test_recommend_effort.py": (1, "a step that else takes seconds of load"),
    "service/core/batching/test_adaptive_effort.py": (1, "the step itself, against a slow twin"),
    "service/core/batching/test_batcher.py": (
        5,
        "a lane that dies, which no input can bring about",
    ),
    "service/core/catalogue/test_live.py": (1, "the scale that a reference must share"),
    "service/core/catalogue/test_sqlite_store.py": (
        1,
        "a short wait for a lock",
    ),
    "service/core/encoding/test_bound_runs.py": (1, "ONNX Runtime's own options of a session"),
    "service/core/encoding/test_encoder.py": (2, "ONNX Runtime tells its fallback nowhere else"),
    "service/core/index/test_learned_graph.py": (1, "a small block, so that few rows make several"),
    "service/observe/test_telemetry.py": (1, "the bound on what is kept back in memory"),
    "support/killing.py": (2, "a training that dies at one step, which no input can bring about"),
}


def is_private(name: object) -> bool:
    if not isinstance(name, str):
        return False
    last = name.rpartition(".")[2]
    return last.startswith("_") and not last.startswith("__") and last not in UNDERSCORE_IN_PUBLIC


def private_uses(path: Path) -> list[str]:
    """Private names of other objects that a file reads, replaces by setattr, or imports."""
    uses: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            uses += [] if own else [node.attr]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (
            "setattr",
            "delattr",
        ):
            values = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            uses += [value for value in values if is_private(value)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES):
            uses += [alias.name for alias in node.names if is_private(alias.name)]
    return uses


def files() -> list[Path]:
    return [path for path in sorted(TESTS.rglob("*.py")) if TESTS / "bench" not in path.parents]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(TESTS)))
def test_private_names_are_used_only_where_a_reason_stands(path: Path) -> None:
    allowed, _ = EXCEPTIONS.get(path.relative_to(TESTS).as_posix(), (0, ""))
    uses = private_uses(path)
    assert len(uses) == allowed, f"uses {uses}: go through a public seam, or count it with a reason"


def test_every_exception_has_its_file_and_its_reason() -> None:
    assert all((TESTS / name).is_file() and reason for name, (_, reason) in EXCEPTIONS.items())
