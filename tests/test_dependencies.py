"""Imports, read from the source: rooms are built on rooms below them, and nothing goes in circles.

Counted is every import, also inside a function and for type checkers only.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each may import from the rows above it; within a row nobody knows the others.
LAYERS = (
    ("text",),
    ("errors",),
    ("losses", "metrics", "ops", "ranges"),
    ("models", "runtime"),
    ("storage",),
    ("imaging", "inference", "weights"),
    ("challenges",),
    ("data", "report"),
    ("evaluation", "training"),
    ("export", "study"),
    ("run",),
    ("__main__",),
)
MODELS = "crossdim_jax.models"
OFFLINE = {"torch", "timm"}  # of weight_port and benchmarks alone


def sources(package: str) -> dict[str, Path]:
    """Module name -> file."""
    paths = (ROOT / package).rglob("*.py")
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }


MODULES = sources("crossdim_jax") | sources("weight_port") | sources("benchmarks")


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, and of what it imports from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in MODULES} or {node.module, *names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def room(module: str) -> str:
    """The package or loose module directly under `crossdim_jax`."""
    return module.split(".")[1] if "." in module else ""


def test_no_file_imports_itself_by_way_of_others():
    """A package's `__init__` is imported before its files, which need not make it a cycle."""
    ours = {name: deps & set(GRAPH) - {name} for name, deps in GRAPH.items()}
    graphlib.TopologicalSorter(ours).prepare()


def test_every_room_has_its_layer():
    rooms = {room(name) for name in MODULES if name.startswith("crossdim_jax")} - {""}
    assert rooms == {name for layer in LAYERS for name in layer}


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("crossdim_jax.")))
def test_imports_point_downwards(module):
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    packages = {name.partition(".")[0] for name in GRAPH[module]}
    others = {room(name) for name in GRAPH[module] if name.startswith("crossdim_jax.")}
    above = [name for name in others - {room(module)} if level[name] >= level[room(module)]]
    assert not above, f"{module} imports from {above}"
    assert not packages & {"weight_port", "benchmarks", "launch", *OFFLINE}


def users(package: str) -> set[str]:
    """Modules of ours that import a package or something in it."""
    return {m for m, deps in GRAPH.items() if any(f"{n}.".startswith(f"{package}.") for n in deps)}


def test_linen_is_known_to_networks_only():
    assert all(f"{module}.".startswith(f"{MODELS}.") for module in users("flax.linen"))


def test_orbax_is_known_to_one_module():
    ours = {name for name in users("orbax") if name.startswith("crossdim_jax.")}
    assert ours == {"crossdim_jax.training.checkpoint"}
