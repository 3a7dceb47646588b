"""A family of classifiers is one file on either side, and nothing else knows its names."""

import ast
import re
import types
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax.models import encoders
from crossdim_jax.models.depth import Strides
from crossdim_jax.models.family import Encoder, Feature
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.merge import depth_form, merge
from crossdim_jax.weights.recipe import Recipe
from weight_port import families, names, rename
from weight_port.convert import convert
from weight_port.source import Source

ROOT = Path(__file__).resolve().parents[2]
# What only a family's own files may speak of. An example in a message is none of the program's
# knowledge, and benchmarks build the network a second time.
OWN = re.compile(r"blocks_?\d?[(\\_]|conv_stem|conv_head|conv_pw|conv_dw|routing_fn|\bbn\d|\btf_")
# Other families' own files have names of their own, some of them the same.
NAMES = {m.__name__.rpartition(".")[2] for m in encoders.FAMILIES} | {"residual", "common"}
FILES = re.compile(rf"(models|families)/({'|'.join(NAMES)})(_\w+)?\.py$")
EXAMPLES = re.compile(r"such as|python -m weight_port|'blocks_\[56\]_.*=center'|\.\*/conv_stem")


def spoken(path):
    """The texts of a file that are no docstrings, and the names of attributes it asks for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def test_a_familys_names_stand_in_its_own_files_only():
    files = [
        path for room in ("crossdim_jax", "weight_port") for path in (ROOT / room).rglob("*.py")
    ]
    own = [path for path in files if FILES.search(path.as_posix())]
    assert any(OWN.search(text) for path in own for text in spoken(path))
    found = {
        f"{path.relative_to(ROOT)}: {text[:60]}"
        for path in set(files) - set(own)
        for text in spoken(path)
        if OWN.search(text) and not EXAMPLES.search(text)
    }
    assert not found


class Toy(nn.Module):
    """A stem and one stage."""

    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        nd = x.ndim - 2
        x = nn.Conv(4, (3,) * nd, strides=2, use_bias=False, name="first")(x)
        x = nn.relu(nn.GroupNorm(2, name="norm")(x))
        return [x, nn.Conv(6, (3,) * nd, strides=2, use_bias=False, name="stage_0")(x)]


def flax_path(torch_name):
    """`layer1.weight` -> `params/encoder/stage_0/kernel`."""
    module, _, leaf = torch_name.rpartition(".")
    leaves = rename.NORM_LEAVES if module == "norm" else rename.KERNEL_LEAVES
    collection, ours = leaves[leaf]
    module = re.sub(r"layer(\d)", lambda m: f"stage_{int(m[1]) - 1}", module)
    return f"{collection}/encoder/{module}/{ours}"


@pytest.fixture
def toy(monkeypatch):
    """A family by the tables alone."""
    row = Encoder(
        family="toy",
        build=Toy,
        stem="first/kernel",
        norm="batch",
        info=lambda: (Feature(4, 2), Feature(6, 4)),
        strides=lambda: Strides("toy", (2, 2), (3, 3), (0, 1)),
        stage=r"(stage_(\d+))/",
    )
    family = types.SimpleNamespace(
        LEFT_OUT={"toy_odd": "it is odd"},
        models=lambda architecture: ("timm_toy",),
        architecture_of=lambda model: model.removeprefix("timm_"),
        label=lambda architecture: "timm_toy",
        convention=lambda model: ("symmetric", 1e-4),
        size=lambda architecture: (500, 32),
        flax_path=flax_path,
        of_head=lambda name: False,
        to_flax_layout=lambda array, path, shape: rename.to_flax_layout(array),
    )
    monkeypatch.setitem(encoders.ENCODERS, "toy", row)
    monkeypatch.setitem(families.FAMILIES, "toy", family)


def test_another_family_is_ported_by_its_two_files(toy, rng):
    name = names.parse_name("timm_toy.tag")
    assert (name.architecture, name.padding, name.eps) == ("toy", "symmetric", 1e-4)
    assert names.left_out("toy_odd") == "it is odd" and names.supported()[-1].parameters == 500
    draw = {"first.weight": (4, 3, 3, 3), "layer1.weight": (6, 4, 3, 3)}
    draw |= {"norm.weight": (4,), "norm.bias": (4,)}
    arrays = {k: rng.normal(size=shape).astype(np.float32) for k, shape in draw.items()}
    recipe = Recipe(
        3, 1, "batch", "mean", "tile", inflate_at=("stage_0/kernel=center",), head=False
    )
    made = convert(Source(name, arrays, {"id": "timm_toy", "file": None}), recipe)
    assert set(made.used) == set(draw) and not made.unused and not made.fresh
    image = jax.ShapeDtypeStruct((1, 32, 32, 32, 1), jnp.float32)
    variables = jax.eval_shape(encoders.build("toy").init, jax.random.key(0), image)
    variables = {c: {"encoder": tree} for c, tree in variables.items()}
    merged, report = merge(variables, Weights(made.arrays))
    assert len(report.filled) == 4 and not report.outside
    kernel = merged["params"]["encoder"]["stage_0"]["kernel"]
    flat = arrays["layer1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel[1], flat)
    assert not kernel[0].any() and not kernel[2].any()
    shapes = {path: array.shape for path, array in made.arrays.items()}
    assert depth_form("toy", shapes, 3)["depth_taps"] == [3, 3]
