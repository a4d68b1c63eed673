"""The arrows of docs/architecture.md, held by walking imports, those for types only included.

A place is a folder or a single module. A module may import from its own place and from places on
lower floors, never from above and never from a neighbour on the same floor.
"""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the top floor to the ground; the longest name that fits a module is its place.
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "service": (
        ("service.__main__", "service.check", "service.fetch"),
        ("service.process",),
        ("service.edge",),
        ("service.api",),
        ("service.gate", "service.recommender"),
        ("service.serving",),
        ("service.feedback",),
        ("service.observe", "service.overload"),
        ("service.core.engine",),
        ("service.core.parts", "service.core.ranking"),
        ("service.core.catalogue", "service.core.rerank"),
        ("service.core.encoding", "service.core.index", "service.core.labels"),
        ("service.core.batching",),
        ("service.core",),
        ("service.bundle", "service.settings"),
        ("service.client",),
        ("service.remote",),
        ("service.background",),
        (
            *("service.atomic", "service.errors", "service.interrupt", "service.signals"),
            *("service.memory", "service.regular_files", "service.strict_json", "service.version"),
        ),
    ),
    "models": (
        ("models.__main__",),
        ("models.command_line",),
        ("models.bulk", "models.compare"),
        ("models.stages",),
        ("models.plan", "models.seal"),
        ("models.gather",),
        ("models.tune",),
        ("models.rerank",),
        ("models.teacher", "models.warm_start"),
        ("models.trained",),
        ("models.index",),
        ("models.methods",),
        ("models.export",),
        ("models.label_trees",),
        ("models.training",),
        ("models.quality",),
        ("models.encoders",),
        ("models.data",),
        ("models.runs",),
        ("models.config",),
        ("models.extras", "models.progress", "models.rng", "models.sparse_rows", "models.svg"),
        ("models.errors",),
    ),
    "loadtest": (
        ("loadtest.__main__",),
        ("loadtest",),
        ("loadtest.client",),
        ("loadtest.plan",),
        ("loadtest.target",),
        ("loadtest.headers",),
        ("loadtest.errors", "loadtest.interrupt"),
    ),
}
OF_SERVICE_FOR_TRAINING = (
    *("service.core", "service.bundle"),
    *("service.atomic", "service.errors", "service.interrupt", "service.regular_files"),
    *("service.recommender", "service.serving.request_models", "service.version"),
)
"""What `models` may import of the service: the code that serves is the code that measures."""

HEAVY_IN_SERVICE = ("models", "loadtest", "torch", "transformers")
LAZY_IN_SERVICE = ("cryptography", "obstore", "psycopg", "pyarrow")
"""What the service imports only where a setting asks for it."""
HEAVY_IN_CLIENT = (
    *("torch", "faiss", "onnxruntime", "numpy", "fastapi", "starlette", "uvicorn", "pydantic"),
    *("service.errors", "service.api", "service.core"),
)
HEAVY_IN_STAGES = ("transformers", "matplotlib")
"""What takes seconds to import, and what most commands of `python -m models` do without."""
NOT_IN_CORE = ("fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic_settings")
METHODS = "models.methods"


@cache
def modules() -> dict[str, Path]:
    by_name = {}
    for package in FLOORS:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            by_name[name.removesuffix(".__init__")] = path
    return by_name


@cache
def imports_of(path: Path) -> set[str]:
    """Absolute names imported anywhere in a file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def place_of(name: str) -> tuple[int, str]:
    """Floor, counted from the top, and place of an imported name of this project."""
    floors = FLOORS[name.split(".")[0]]
    fits = [(i, p) for i, floor in enumerate(floors) for p in floor if within(name, p)]
    assert fits, f"{name} has no place in FLOORS"
    return max(fits, key=lambda fit: len(fit[1]))


def graph() -> dict[str, set[str]]:
    """Module -> modules of this project that it imports."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        edges[module] = set()
        for name in imports_of(path):
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name and known[name].name != "__init__.py":
                edges[module].add(name)
    return edges


@pytest.mark.parametrize("module", [m for m, p in modules().items() if p.name != "__init__.py"])
def test_module_imports_only_from_floors_below(module: str) -> None:
    package = module.split(".")[0]
    floor, place = place_of(module)
    for name in imports_of(modules()[module]):
        top = name.split(".")[0]
        if top == package:
            floor_of_name, place_of_name = place_of(name)
            assert place_of_name == place or floor_of_name > floor, f"{module} imports {name}"
        elif top in FLOORS:
            allowed = package == "models" and any(within(name, p) for p in OF_SERVICE_FOR_TRAINING)
            assert allowed, f"{module} imports {name}"


def test_no_import_goes_in_a_circle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as exc:
        pytest.fail(f"imports in a circle: {' <- '.join(exc.args[1])}")


@pytest.mark.parametrize("place", [p for f in FLOORS.values() for floor in f for p in floor])
def test_every_place_is_there(place: str) -> None:
    assert any(within(module, place) for module in modules())


@pytest.mark.parametrize("module", [m for m in modules() if within(m, "service")])
def test_service_never_imports_training_or_its_libraries(module: str) -> None:
    imported = imports_of(modules()[module])
    assert not {n for n in imported if n.split(".")[0] in HEAVY_IN_SERVICE}


@pytest.mark.parametrize("module", [m for m in modules() if within(m, "service.core")])
def test_core_knows_no_web_and_no_environment(module: str) -> None:
    path = modules()[module]
    assert not {n for n in imports_of(path) if n.split(".")[0] in NOT_IN_CORE}
    assert "os.getenv" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("module", [m for m in modules() if within(m, METHODS) and m != METHODS])
def test_methods_never_import_each_other(module: str) -> None:
    assert not {n for n in imports_of(modules()[module]) if within(n, METHODS)}


def is_lazy_name(node: ast.stmt) -> bool:
    """Whether it imports a name of a package only when somebody, or the type checker, asks."""
    match node:
        case ast.FunctionDef(name="__getattr__") | ast.ImportFrom(module="typing"):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
    return False


def test_package_inits_are_empty() -> None:
    for name, path in modules().items():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            still = [n for n in body if isinstance(n, ast.Expr) or is_lazy_name(n)]
            assert len(body) == len(still), f"{name} does something at import"


@pytest.mark.parametrize(
    ("imports", "heavy"),
    [
        ("service.client", HEAVY_IN_CLIENT),
        (
            "service.api.app, service.edge.server, service.core.engine",
            (*HEAVY_IN_SERVICE, *LAZY_IN_SERVICE),
        ),
        ("models.stages", HEAVY_IN_STAGES),
    ],
)
def test_import_pulls_nothing_heavy(imports: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {imports}\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
