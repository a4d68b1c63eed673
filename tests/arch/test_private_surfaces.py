"""What this code touches of libraries that they do not promise to keep, in one table.

Whoever raises a library's version in `pyproject.toml` reads here what may break without a word. A
row fails once the code no longer touches it, once the library no longer has it, or where its
version has no upper bound. What is private and not in the table fails too. libpecos, which has a
function replaced, is no dependency: `models/compare/peers/xr_linear.py` names its one version.
"""

import ast
import importlib
import inspect
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("service", "models", "loadtest")


@dataclass(frozen=True)
class Surface:
    """`names` of `owner` ("module" or "module:Class"), touched by `file`.

    A format has no names: `proof` is the test that fails once the library writes another one.
    """

    file: str
    library: str
    owner: str
    names: tuple[str, ...]
    why: str
    proof: str = ""


HTTPTOOLS = "uvicorn.protocols.http.httptools_impl"
SURFACES = (
    Surface(
        "service/edge/connection.py",
        "uvicorn",
        f"{HTTPTOOLS}:HttpToolsProtocol",
        (
            *("connection_made", "connection_lost", "data_received", "eof_received", "shutdown"),
            *("on_message_begin", "on_header", "on_headers_complete", "on_body"),
            *("on_message_complete", "on_response_complete", "pause_writing", "resume_writing"),
            *("_start_asgi_task", "connections", "cycle", "flow", "headers", "loop", "parser"),
            *("pipeline", "scope", "server_state", "timeout_keep_alive", "transport", "url"),
        ),
        "bounds each phase of a connection in bytes and time, and refuses requests unread; uvicorn "
        "has no setting for either",
    ),
    Surface(
        "service/gate/exchange.py",
        "uvicorn",
        f"{HTTPTOOLS}:RequestResponseCycle",
        (
            *("default_headers", "disconnected", "flow", "keep_alive", "message_event"),
            *("on_response", "response_complete", "response_started", "scope", "transport"),
            *("more_body", "waiting_for_100_continue"),
        ),
        "writes head and body at once: the second write took a twentieth of Python's time",
    ),
    Surface(
        "service/gate/exchange.py", "uvicorn", HTTPTOOLS, ("STATUS_LINE",), "the same answer's head"
    ),
    Surface(
        "service/edge/closing.py",
        "uvicorn",
        "uvicorn.protocols.http.flow_control:FlowControl",
        ("resume_reading",),
        "reads no more while requests wait that were read already; uvicorn would, without bound",
    ),
    Surface(
        "service/overload/resting.py",
        "uvicorn",
        "uvicorn.protocols.http.flow_control:FlowControl",
        ("pause_reading", "resume_reading"),
        "leaves a refused connection unread without uvicorn reading on by itself",
    ),
    Surface(
        "service/edge/server.py",
        "uvicorn",
        "uvicorn:Server",
        (
            *("capture_signals", "force_exit", "lifespan", "server_state", "servers"),
            *("should_exit", "shutdown", "startup"),
        ),
        "drains on the first signal, and closes ports without hanging up on anybody",
    ),
    Surface(
        "service/edge/server.py",
        "uvicorn",
        "uvicorn:Config",
        ("http_protocol_class", "is_ssl", "load"),
        "reads the certificate before the ports open; makes the protocol for accepted sockets",
    ),
    Surface(
        "service/api/openapi.py",
        "fastapi",
        "fastapi.routing:APIRoute",
        ("app",),
        "describes a route by FastAPI and answers it without FastAPI's own handling",
    ),
    Surface(
        "service/observe/worker_metrics.py",
        "prometheus-client",
        "prometheus_client.values",
        ("ValueClass",),
        "keeps the values of workers in memory, where a full disk cannot kill the process",
    ),
    Surface(
        "service/core/index/faiss_layout.py",
        "faiss-cpu",
        "faiss",
        (),
        "checks a file to the byte before FAISS, which would read behind its end, sees it",
        proof="tests/service/core/index/test_faiss_layout.py",
    ),
    Surface(
        "service/core/catalogue/delta.py",
        "faiss-cpu",
        "faiss.swigfaiss",
        ("knn_inner_product",),
        "searches an array under a selector; `faiss.knn` takes no selector",
    ),
    Surface(
        "models/training/board.py",
        "tensorboardX",
        "tensorboardX.record_writer",
        ("RecordWriter",),
        "writes in the training thread: the library's queue blocks for ever once a disk was full",
    ),
    Surface(
        "models/training/board.py",
        "tensorboardX",
        "tensorboardX.proto.event_pb2",
        ("Event", "SessionLog"),
        "voids the points of a run that goes on from a checkpoint",
    ),
    Surface(
        "models/export/export_onnx.py",
        "transformers",
        "transformers:PretrainedConfig",
        ("_attn_implementation",),
        "puts the attention back after an export; only setting it has a public name",
    ),
    Surface(
        "models/export/graph_editor.py",
        "torch",
        "torch.onnx",
        (),
        "finds a layer's nodes by the scope that torch's exporter writes beside each",
        proof="tests/models/export/test_export_onnx.py",
    ),
)

PUBLIC = {"_exit"}
"""Of Python itself: `os._exit` is documented."""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named_in(path: Path) -> set[str]:
    """Every attribute, function and imported name of a file."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    return names


def own_names(tree: ast.Module) -> set[str]:
    """What a module's functions, classes, fields and slots are called."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def foreign_private(path: Path, in_project: Counter[str]) -> set[str]:
    """Private names that a file uses and that are of no class of its own.

    `in_project` says how many of our files define a name.
    """
    tree = tree_of(path)
    own, called = own_names(tree), set()
    foreign: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            words = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            foreign |= {word for word in words if is_private(word)}
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            called.add(node.attr)
            itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if node.attr not in (in_project if itself else own):
                foreign.add(node.attr)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.bases:
            # A private method that nobody here calls overrides one of the base's: of a library's
            # base, unless another of our modules has the method too.
            methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef)
                       and not each.decorator_list and in_project[each.name] < 2}  # fmt: skip
            foreign |= {name for name in methods if is_private(name) and name not in called}
    return foreign - PUBLIC


def files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def has(owner: object, name: str) -> bool:
    """Whether a module or class has it, or sets it on its instances."""
    if hasattr(owner, name):
        return True
    assert isinstance(owner, type), f"{owner} has no {name}"
    sources = (inspect.getsource(each) for each in owner.__mro__ if each is not object)
    return any(re.search(rf"\bself\.{name}\b[^=\n]*=[^=]", source) for source in sources)


def test_private_names_of_libraries_are_in_the_table() -> None:
    in_project = Counter(name for path in files() for name in own_names(tree_of(path)))
    listed = {(surface.file, name) for surface in SURFACES for name in surface.names}
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in files()
        for name in foreign_private(path, in_project)
    }
    assert not found - listed, "use what is public, or give the reason in SURFACES"


@pytest.mark.parametrize("surface", SURFACES, ids=lambda each: f"{each.file}-{each.owner}")
def test_a_surface_is_touched_and_still_there(surface: Surface) -> None:
    untouched = set(surface.names) - named_in(ROOT / surface.file)
    assert not untouched, f"{surface.file} no longer touches them: take them out of SURFACES"
    assert surface.names or (ROOT / surface.proof).is_file()
    if not surface.names:
        return
    module, _, name = surface.owner.partition(":")
    # `make test-oldest` has the service's libraries alone.
    pytest.importorskip(module.partition(".")[0])
    owner = importlib.import_module(module)
    for part in name.split(".") if name else ():
        owner = getattr(owner, part)
    gone = [each for each in surface.names if not has(owner, each)]
    assert not gone, f"{surface.owner} of {surface.library} no longer has {gone}"


@pytest.mark.parametrize("library", sorted({surface.library for surface in SURFACES}))
def test_the_library_of_a_surface_has_an_upper_bound(library: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    wanted = [line for line in lines if re.split(r"[^\w-]", line)[0].lower() == library.lower()]
    assert wanted, f"{library} is not in pyproject.toml"
    assert all("<" in line for line in wanted), f"{wanted}: cap it below the next release"
