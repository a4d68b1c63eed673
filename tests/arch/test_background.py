"""Nothing works beside the requests without a last resort: `service.background` starts it all.

What is started otherwise stands here, with its reason. Awaited calls (`asyncio.to_thread`) are
no background work: their errors reach whoever waits. Callbacks and timers of the event loop need no
list: `Background.guard_loop` counts the errors of all.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELPER = "service/background.py"

STARTS = frozenset(
    {
        *("create_task", "ensure_future", "run_coroutine_threadsafe", "TaskGroup", "Runner"),
        *("Thread", "Timer", "start_new_thread", "ThreadPoolExecutor", "ProcessPoolExecutor"),
        *("to_thread", "run_in_executor", "run_in_threadpool", "BackgroundTask", "Process"),
        *("fork", "finalize"),
    }
)
"""Calls that start something which nobody may be waiting for."""

AWAITED_ANYWAY = frozenset({"to_thread", "run_in_executor", "run_in_threadpool", "create_task"})

EXCEPTIONS: dict[str, tuple[int, str]] = {
    "service/bundle/open_files.py:_hold_lock": (1, "the finaliser closes a descriptor"),
    "service/bundle/source.py:_fetch": (1, "waited for, in a process of its own"),
    "service/core/batching/lane.py:__init__": (1, "a lane that dies turns readiness red"),
    "service/core/encoding/bound_runs.py:__init__": (
        2,
        "every call's error goes to its caller; the finaliser ends the thread",
    ),
    "service/edge/server.py:shutdown": (1, "awaited before the server ends"),
    "service/feedback/feedback.py:__init__": (1, "its calls are awaited: by the task, or by stop"),
    "service/interrupt.py:end_on_signal": (1, "ends the program; nothing is served then"),
    "service/process/supervisor.py:_start_due": (1, "the worker itself, which is replaced"),
    "service/serving/serving.py:drain": (1, "awaited by everyone who drains"),
}


def starts_in(name: str, code: str) -> Counter[str]:
    """How often each function of the file `name` starts something that it does not await."""
    found: Counter[str] = Counter()

    def walk(node: ast.AST, function: str, awaited: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in STARTS and not (awaited and called in AWAITED_ANYWAY):
                found[f"{name}:{function}"] += 1
        for child in ast.iter_child_nodes(node):
            walk(child, function, isinstance(node, ast.Await))

    walk(ast.parse(code), "", awaited=False)
    return found


def sources() -> dict[str, str]:
    """The code of every file of the service but the helper, by its name."""
    paths = sorted((ROOT / "service").rglob("*.py"))
    codes = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    return {name: code for name, code in codes.items() if name != HELPER}


@pytest.mark.parametrize("name", sources())
def test_background_work_is_started_by_the_helper(name: str) -> None:
    allowed = {where: count for where, (count, _) in EXCEPTIONS.items()}
    for where, count in starts_in(name, sources()[name]).items():
        assert count <= allowed.get(where, 0), (
            f"{where} starts background work: use service.background, or list it with its reason"
        )


def test_every_exception_is_still_needed() -> None:
    found: Counter[str] = Counter()
    for name, code in sources().items():
        found += starts_in(name, code)
    assert {name: found[name] for name in EXCEPTIONS} == {
        name: count for name, (count, _) in EXCEPTIONS.items()
    }


@pytest.mark.parametrize(
    ("code", "n_starts"),
    [
        ("asyncio.create_task(f())", 1),
        ("x = loop.create_task(f())", 1),
        ("threading.Thread(target=f).start()", 1),
        ("Thread(target=f).start()", 1),
        ("loop.run_in_executor(None, f)", 1),
        ("async def g():\n await loop.run_in_executor(None, f)", 0),
        ("async def g():\n await asyncio.to_thread(f)", 0),
        ("background.repeat('a', f, 1.0)", 0),
    ],
)
def test_what_counts_as_a_start(code: str, n_starts: int) -> None:
    assert starts_in("imagined.py", code).total() == n_starts
