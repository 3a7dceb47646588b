"""A field of a config is read in one place, as the source says."""

import ast
import functools
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict

from crossdim_jax.run import config as config_lib

pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)
ROOT = Path(__file__).resolve().parents[2]
READER = "crossdim_jax/run/from_config.py"
# What else is done with a config. Modules of libraries are not meant: `jax.config`;
# nor reports, which read what a run folder has recorded.
USES = {
    "crossdim_jax/run/config.py": {"config.to_dict", "values.config"},  # reads it, completes it
    "crossdim_jax/run/auto_fields.py": {"config.to_dict"},  # fills it
    "crossdim_jax/run/experiment.py": {"config.to_dict", "self.config.to_dict"},  # records it
    "crossdim_jax/run/train.py": {"experiment.config.to_dict"},  # records it
    # makes the config of a fold
    "crossdim_jax/run/ensemble.py": {
        *("experiment.config.to_dict", "config.data.split.update", "config.fold", "config.lock"),
    },
    "crossdim_jax/training/loop.py": {"self._settings.config"},  # records it
}
LIBRARIES = {"jax", "pydicom"}
CONFIGS = ("brats_dxnet", "brats_dsnet", "camus_omnianet", "chaos_omnianet")


def chain(node: ast.AST) -> list[str]:
    """The names of `a.b.c`, a subscript by a string being one; [] for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        inner = chain(node.value)
        return [*inner, node.attr] if inner else []
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        inner, key = chain(node.value), node.slice.value
        return [*inner, f"[{key}]"] if inner and isinstance(key, str) else []
    return []


def uses(path: Path) -> list[str]:
    """Every `config.x.y`, `self.config.x` and so on, each where it ends."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Subscript)}
    modules = {
        alias.asname or alias.name.rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
    }
    found = []
    for node in ast.walk(tree):
        names = chain(node) if id(node) not in inner else []
        read = {"config", "full"} & set(names[:-1]) or "config" in names[1:]
        if read and names[0] not in LIBRARIES | modules:
            found.append(".".join(names))
    return found


@functools.cache
def fields() -> set[str]:
    """Every field of every config, dotted."""
    configs = (config_lib.read(f"configs/{name}.py:debug") for name in CONFIGS)
    return {f for config in configs for f in flatten_dict(config.to_dict(), sep=".")}


def test_no_other_module_reads_a_config():
    paths = [ROOT / "launch.py", *(ROOT / "crossdim_jax").rglob("*.py")]
    found = {str(path.relative_to(ROOT)): set(uses(path)) for path in paths}
    found = {path: names for path, names in found.items() if "/report/" not in path}
    assert len(found.pop(READER)) > 20
    assert {path: names for path, names in found.items() if names} == USES


def test_every_field_is_read_and_read_once():
    """By itself or with all of its section, never both."""
    read = [name.removeprefix("config.") for name in uses(ROOT / READER)]
    assert len(read) == len(set(read))
    sections = {n.removesuffix(".to_dict") for n in read if n.endswith(".to_dict")}
    single = {name for name in read if not name.endswith(".to_dict")}
    assert single <= fields() | set(config_lib.LATER)
    with_section = {f for f in fields() if any(f.startswith(f"{s}.") for s in sections)}
    assert not single & with_section
    assert fields() - single - with_section == {"fold"}  # another name of data.split.fold
    assert "data.split" in sections and "train.keep" in single
