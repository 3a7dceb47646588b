"""Parameters by path, and the way of a file's into a model: total or loud."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from crossdim_jax.errors import WeightsError
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.merge import depth_form, merge
from crossdim_jax.weights.paths import flatten, select, unflatten

B0 = "efficientnet_b0"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def arrays(rng):
    shapes = {
        "params/encoder/stem/kernel": (3, 3, 4, 8),
        "params/encoder/stem/bn/scale": (8,),
        "batch_stats/encoder/stem/bn/mean": (8,),
    }
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


@pytest.fixture
def variables():
    return {
        "params": {
            "encoder": {"stem": {"kernel": jnp.zeros((3, 3, 4, 8)), "bn": {"scale": jnp.ones(8)}}},
            "head": {"kernel": jnp.full((8, 2), 7.0)},
        },
        "batch_stats": {"encoder": {"stem": {"bn": {"mean": jnp.zeros(8)}}}},
    }


# ------------------------------------------------------------------------- paths and patterns


def test_flatten_and_unflatten_are_inverse(variables):
    flat = flatten(variables)
    assert list(flat)[0] == "params/encoder/stem/kernel"
    assert jax.tree.structure(unflatten(flat)) == jax.tree.structure(variables)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["encoder/a"], {"params/encoder/a"}),
        (["params/encoder/a"], {"params/encoder/a"}),
        ([".*/b"], {"params/encoder/b", "batch_stats/encoder/b"}),
        (["encoder/.*", "head/a"], {"params/encoder/a", "params/encoder/b"} | {"params/head/a"}),
        ([], set()),
    ],
)
def test_patterns_match_whole_paths_with_or_without_collection(patterns, expected):
    paths = ["params/encoder/a", "params/encoder/b", "batch_stats/encoder/b", "params/head/a"]
    if patterns == ["encoder/.*", "head/a"]:
        expected = set(paths)
    assert select(patterns, paths) == expected


def test_wrong_patterns_are_all_named():
    with pytest.raises(WeightsError) as caught:
        select(["encoder", "a(", "encoder/a"], ["params/encoder/a"])
    text = str(caught.value)
    assert "'encoder': matches no path" in text and "'a(': not a regular expression" in text
    assert "'encoder/a': " not in text


# ------------------------------------------------------------------------- into a model


def test_merge_fills_its_modules_and_touches_nothing_else(arrays, variables):
    merged, report = merge(variables, Weights(arrays))
    flat = flatten(merged)
    assert jax.tree.structure(merged) == jax.tree.structure(variables)
    for path, array in arrays.items():
        np.testing.assert_array_equal(flat[path], array)
    np.testing.assert_array_equal(flat["params/head/kernel"], variables["params"]["head"]["kernel"])
    assert set(report.filled) == set(arrays) and report.outside == ("params/head/kernel",)
    assert not variables["params"]["encoder"]["stem"]["kernel"].any()  # the input is not changed


def test_merge_lists_everything_wrong_at_once(arrays, variables):
    arrays["params/encoder/stem/kernel"] = np.zeros((3, 3, 4, 9), np.float32)
    arrays["params/encoder/stem/extra"] = arrays.pop("params/encoder/stem/bn/scale")
    del arrays["batch_stats/encoder/stem/bn/mean"]
    with pytest.raises(WeightsError) as caught:
        merge(variables, Weights(arrays, path=Path("some/w.safetensors")))
    text = str(caught.value)
    assert text.startswith("some/w.safetensors does not fit the model (4 problems)")
    assert "missing in the file: params/encoder/stem/bn/scale" in text
    assert "missing in the file: batch_stats/encoder/stem/bn/mean" in text  # whole collection
    assert "unknown to the model: params/encoder/stem/extra" in text
    assert "params/encoder/stem/kernel: found (3, 3, 4, 9), expected (3, 3, 4, 8)" in text


def test_merge_into_a_model_without_that_module(arrays):
    with pytest.raises(WeightsError, match="unknown to the model: params/encoder/stem/kernel"):
        merge({"params": {"head": {"kernel": jnp.zeros(3)}}}, Weights(arrays))


def test_skip_leaves_fresh_and_unused_as_asked(arrays, variables):
    arrays["params/encoder/stem/kernel"] = np.zeros((3, 3, 5, 8), np.float32)  # would not fit
    arrays["params/encoder/top/kernel"] = np.zeros(3, np.float32)
    skip = ["encoder/stem/kernel", "encoder/top/.*"]
    merged, report = merge(variables, Weights(arrays), skip=skip)
    assert report.fresh == ("params/encoder/stem/kernel",)
    assert report.unused == ("params/encoder/stem/kernel", "params/encoder/top/kernel")
    kept = variables["params"]["encoder"]["stem"]["kernel"]
    np.testing.assert_array_equal(merged["params"]["encoder"]["stem"]["kernel"], kept)


def test_the_classification_head_is_reported_and_not_merged(arrays, variables):
    """Nor is it mistaken for a module of the model that is called `head`."""
    arrays |= {f"head/encoder/classifier/{leaf}": np.zeros(3, np.float32) for leaf in "ab"}
    merged, report = merge(variables, Weights(arrays))
    np.testing.assert_array_equal(merged["params"]["head"]["kernel"], 7.0)
    assert merged.keys() == {"params", "batch_stats"} and len(report.filled) == 3
    assert report.unused == ("head/encoder/classifier/a", "head/encoder/classifier/b")
    assert str(report) == (
        "3 tensors from the file, 0 left fresh and 0 left out by skip patterns, 1 in other "
        "modules; 2 of the classification head not used"
    )
    for pattern in ("head/.*", "classifier/.*"):
        with pytest.raises(WeightsError, match="matches no path"):
            merge(variables, Weights(arrays), skip=[pattern])


def test_a_module_called_head_keeps_its_name_in_patterns():
    """`head` is a collection of weight files, not one that patterns may leave out."""
    with pytest.raises(WeightsError, match="'kernel': matches no path"):
        select(["kernel"], ["head/kernel", "encoder/kernel"])


def test_how_kernels_extend_along_depth_is_read_off_their_shapes():
    shapes = {
        "params/encoder/conv_stem/kernel": (1, 3, 3, 4, 8),
        "params/encoder/bn1/scale": (8,),
        "params/encoder/blocks_0_0/conv_dw/kernel": (3, 3, 3, 1, 8),
        "params/encoder/blocks_0_0/conv_pw/kernel": (1, 1, 1, 8, 8),
        "params/encoder/blocks_2_0/conv_dw/kernel": (4, 5, 5, 5, 1, 8),  # four experts
        "params/decoder/conv/kernel": (7, 7, 7, 8, 8),
    }
    assert depth_form("efficientnet_b0", shapes, 3) == {
        "depth_taps": [1, 3, 1, 5],
        "factorised": False,
    }
    shapes["params/encoder/blocks_1_0/conv_dw/kernel"] = (1, 3, 3, 1, 8)
    shapes["params/encoder/blocks_1_0/conv_dw/depth_kernel"] = (2, 1, 1, 1, 8)
    assert depth_form("efficientnet_b0", shapes, 3) == {
        "depth_taps": [1, 3, 2, 5],
        "factorised": True,
    }
    assert depth_form("efficientnet_b0", shapes, 2) == {
        "depth_taps": None,
        "factorised": None,
    }


def test_a_skip_pattern_that_matches_nothing_is_an_error(arrays, variables):
    with pytest.raises(WeightsError, match="'head/.*': matches no path"):
        merge(variables, Weights(arrays), skip=["head/.*"])  # outside: not merged


def test_merge_keeps_dtype_and_sharding(arrays, variables):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec(None, None, None, "data"))
    stem = variables["params"]["encoder"]["stem"]
    stem["kernel"] = jax.device_put(stem["kernel"].astype(jnp.bfloat16), spread)
    merged, _ = merge(variables, Weights(arrays))
    kernel = merged["params"]["encoder"]["stem"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding == spread
    expected = arrays["params/encoder/stem/kernel"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(kernel), expected)


def test_merged_arrays_are_committed_only_where_the_model_is(arrays, variables):
    """Otherwise a model that was free to move would be pinned to the first device."""
    merged, _ = merge(variables, Weights(arrays))
    assert not any(leaf.committed for leaf in jax.tree.leaves(merged))


def test_merge_into_abstract_variables(arrays, variables):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    abstract = jax.eval_shape(lambda: variables)
    abstract["params"]["encoder"]["stem"]["bn"]["scale"] = jax.ShapeDtypeStruct(
        (8,), jnp.float32, sharding=everywhere
    )
    merged, _ = merge(abstract, Weights(arrays))
    assert isinstance(merged["params"]["encoder"]["stem"]["kernel"], jax.Array)
    assert merged["params"]["encoder"]["stem"]["bn"]["scale"].sharding == everywhere
    assert isinstance(merged["params"]["head"]["kernel"], jax.ShapeDtypeStruct)


# ------------------------------------------------------------------------- what stays out


def test_the_package_imports_neither_torch_nor_timm():
    sources = sorted((ROOT / "crossdim_jax").rglob("*.py"))
    assert sources
    wrong = re.compile(r"^\s*(import|from)\s+(torch|timm)\b", re.MULTILINE)
    assert [path for path in sources if wrong.search(path.read_text())] == []


def test_loading_the_package_loads_neither_torch_nor_timm():
    program = (
        "import sys\n"
        "import crossdim_jax.models, crossdim_jax.weights.merge\n"
        "assert not {'torch', 'timm'} & set(sys.modules), 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
