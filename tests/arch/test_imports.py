"""The arrows of the architecture, held by walking imports: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What a package may import of this project; the longest prefix that fits a module decides.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "service.version": (),
    "service.errors": (),
    "service.serving.cpus": (),
    "service.interrupt": (),
    "service.bundle.manifest": (),
    "service.bundle.plain_files": ("service.errors",),
    "service.bundle.strict_json": ("service.errors", "service.bundle.plain_files"),
    "service.bundle.claims": ("service.bundle", "service.errors"),
    "service.bundle": (
        "service.bundle.claims",
        "service.errors",
        "service.bundle.manifest",
        "service.bundle.plain_files",
        "service.bundle.strict_json",
    ),
    "service.core": (
        "service.core",
        "service.bundle",
        "service.errors",
        "service.bundle.plain_files",
        "service.bundle.strict_json",
    ),
    "service.settings.edge": (),
    "service.settings.observing": (),
    "service.settings.gpu": ("service.core.encoding.providers",),
    "service.settings": (
        "service.bundle",
        "service.settings.edge",
        "service.errors",
        "service.settings.gpu",
        "service.settings.observing",
    ),
    "service.observe.exposition": (),
    "service.observe.answer_shapes": (
        "service.core",
        "service.observe.exposition",
        "service.bundle.manifest",
    ),
    "service.observe.worker_metrics": (),
    "service.observe.telemetry": (
        "service.core",
        "service.observe.exposition",
        "service.observe.answer_shapes",
        "service.observe.tracing",
    ),
    "service.api": ("service",),
    "service.client": ("service.remote", "service.version"),
    "service.remote": ("service.remote",),
    "service": ("service",),
    "models": (
        "models",
        "service.core",
        "service.bundle",
        "service.errors",
        "service.interrupt",
        "service.bundle.manifest",
        "service.version",
    ),
    "loadtest": ("loadtest",),
}
HEAVY_IN_SERVICE = ("models", "loadtest", "torch", "transformers")
HEAVY_IN_CLIENT = (
    *("torch", "faiss", "onnxruntime", "numpy", "fastapi", "starlette", "uvicorn", "pydantic"),
    *("service.errors", "service.api", "service.core"),
)
NOT_IN_CORE = ("fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic_settings")
METHODS = "models.methods"


def modules() -> dict[str, Path]:
    found = {}
    for package in ("service", "models", "loadtest"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


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


@pytest.mark.parametrize("module", list(modules()))
def test_module_imports_only_what_its_place_allows(module: str) -> None:
    place = max((p for p in MAY_IMPORT if within(module, p)), key=len)
    ours = {n for n in imports_of(modules()[module]) if n.split(".")[0] in MAY_IMPORT}
    wrong = {n for n in ours if not any(within(n, p) for p in MAY_IMPORT[place])}
    assert not wrong, f"{module} ({place}) imports {sorted(wrong)}"


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


def test_package_inits_are_empty() -> None:
    for name, path in modules().items():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            docstrings = [n for n in body if isinstance(n, ast.Expr)]
            assert len(body) == len(docstrings), f"{name} does something at import"


def test_client_import_pulls_neither_the_service_nor_its_libraries() -> None:
    code = f"import sys, service.client\nprint([m for m in {HEAVY_IN_CLIENT} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_service_import_pulls_no_torch() -> None:
    code = (
        "import sys, service.api.app, service.edge.server, service.core.engine\n"
        f"print([m for m in {HEAVY_IN_SERVICE} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
