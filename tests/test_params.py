"""Weight files and their way into a model: total or loud."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from crossdim_jax import params
from crossdim_jax.errors import WeightsError

ROOT = Path(__file__).resolve().parents[1]
RECORD = {
    "architecture": "efficientnet_b0",
    "ndim": 3,
    "in_channels": 16,
    "padding": "same",
    "eps": 1e-3,
    "norm": "instance",
}
CLAIMS = {"source": "tf_efficientnet_b0.ns_jft_in1k", "inflate": "repeat", "stem": "tile"}
MADE = {  # a whole record: what the file is, and how it was made
    **RECORD,
    **{"source": "timm", "id": CLAIMS["source"], "inflate": "repeat", "stem": "tile"},
}


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
    flat = params.flatten(variables)
    assert list(flat)[0] == "params/encoder/stem/kernel"
    assert jax.tree.structure(params.unflatten(flat)) == jax.tree.structure(variables)


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
    assert params.select(patterns, paths) == expected


def test_wrong_patterns_are_all_named():
    with pytest.raises(WeightsError) as caught:
        params.select(["encoder", "a(", "encoder/a"], ["params/encoder/a"])
    text = str(caught.value)
    assert "'encoder': matches no path" in text and "'a(': not a regular expression" in text
    assert "'encoder/a': " not in text


# ------------------------------------------------------------------------- files


def test_files_come_back_as_written(tmp_path, arrays):
    path = params.save_weights(tmp_path / "a" / "w.safetensors", arrays, RECORD)
    weights = params.load_weights(path)
    assert weights.metadata == RECORD and weights.path == path
    assert weights.arrays.keys() == arrays.keys()
    assert all(np.array_equal(weights.arrays[key], arrays[key]) for key in arrays)
    assert os.listdir(path.parent) == ["w.safetensors"]


def test_transposed_views_are_written_in_their_own_order(tmp_path, rng):
    kernel = rng.normal(size=(4, 3, 2)).astype(np.float32).transpose(2, 0, 1)
    path = params.save_weights(tmp_path / "w.safetensors", {"params/encoder/k": kernel}, {})
    np.testing.assert_array_equal(params.load_weights(path).arrays["params/encoder/k"], kernel)


def test_a_failed_write_leaves_the_old_file(tmp_path, arrays, monkeypatch):
    path = params.save_weights(tmp_path / "w.safetensors", arrays, RECORD)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match=r"w.safetensors: .*No space left"):
        params.save_weights(path, {}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_saving_refuses_other_suffixes_and_collections(tmp_path, arrays):
    with pytest.raises(WeightsError, match="end with .safetensors"):
        params.save_weights(tmp_path / "w.npz", arrays, {})
    with pytest.raises(WeightsError, match="found keys encoder/a"):
        params.save_weights(tmp_path / "w.safetensors", {"encoder/a": np.zeros(1)}, {})


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_files_are_named(keep, tmp_path, arrays):
    path = params.save_weights(tmp_path / "w.safetensors", arrays, RECORD)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"w.safetensors: not a readable safetensors"):
        params.load_weights(path)


def test_files_of_other_kinds_say_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match=r"gone.safetensors: no such.*weight_port"):
        params.load_weights(tmp_path / "gone.safetensors")
    with pytest.raises(
        WeightsError, match=r"w.pth: a PyTorch.*weight_port NAME --checkpoint=.*w.pth"
    ):
        params.load_weights(tmp_path / "w.pth")
    path = tmp_path / "timm.safetensors"
    save_file({"conv_stem.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"timm.safetensors: found format None.*--checkpoint"):
        params.load_weights(path)
    save_file({}, path, {"format": params.FORMAT, "record": "{"})
    with pytest.raises(WeightsError, match="record in its header"):
        params.load_weights(path)
    save_file({}, path, {"format": params.FORMAT, "record": "[1]"})
    with pytest.raises(WeightsError, match=r"record in its header is \[1\]"):
        params.load_weights(path)


# ------------------------------------------------------------------------- into a model


def test_check_accepts_equal_records():
    params.check(RECORD, json.loads(json.dumps(RECORD)))
    params.check(RECORD, {**RECORD, "norm": "group"})  # the same tensors


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("architecture", "efficientnet_b4"),
        ("ndim", 2),
        ("in_channels", 3),
        ("padding", "symmetric"),
        ("eps", 1e-5),
        ("norm", "batch"),
    ],
)
def test_check_names_file_found_expected_and_advice(field, wanted):
    expected = {**RECORD, field: wanted}
    found = f"{field}: found {RECORD[field]!r}, expected {wanted!r}. \\w+"
    with pytest.raises(WeightsError, match=f"(?s)^w.safetensors .*{found}.*weight_port"):
        params.check(RECORD, expected, name="w.safetensors")
    params.check(RECORD, expected, ignore=[field])


def test_check_lists_all_differences_and_unknown_ignores():
    with pytest.raises(WeightsError) as caught:
        params.check({}, RECORD)
    assert str(caught.value).count("found nothing") == len(RECORD)
    with pytest.raises(WeightsError, match="Cannot ignore pading"):
        params.check(RECORD, RECORD, ignore=["pading"])


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("inflate", "mean"),
        ("stem", "gray"),
        ("source", "tf_efficientnet_b0.aa_in1k"),
        ("source", "efficientnet_b0"),
        ("source", "tf_efficientnet_b0x"),
    ],
)
def test_check_compares_what_the_config_claims(field, wanted):
    expected = {**RECORD, **CLAIMS}
    params.check(MADE, expected)
    expected[field] = wanted
    found = re.escape(
        f"{field}: found {CLAIMS[field]!r}, expected {wanted!r}. Change config.weights"
    )
    with pytest.raises(WeightsError, match=f"(?s)^w.safetensors .*{found}"):
        params.check(MADE, expected, name="w.safetensors")
    params.check(MADE, expected, ignore=[field])


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_empty_claim_is_not_compared_and_may_be_ignored(nothing):
    expected = {**RECORD, **dict.fromkeys(params.CLAIMS, nothing)}
    params.check(MADE, expected)
    params.check(RECORD, expected, ignore=["source", "inflate", "stem"])


def test_a_record_without_what_is_claimed_is_refused():
    with pytest.raises(WeightsError) as caught:
        params.check(RECORD, {**RECORD, **CLAIMS})
    assert str(caught.value).count("found nothing") == len(CLAIMS)


def test_claims_are_compared_only_where_they_matter():
    flat = {**MADE, "ndim": 2, "inflate": None}
    params.check(flat, {**RECORD, **CLAIMS, "ndim": 2})  # 2D weights are not inflated
    colour = {**MADE, "in_channels": 3}
    wanted = {**RECORD, **CLAIMS, "in_channels": 3}
    params.check(colour, {**wanted, "stem": "gray"})  # both leave three channels as they are
    with pytest.raises(WeightsError, match="stem: found 'tile', expected 'reinit'"):
        params.check(colour, {**wanted, "stem": "reinit"})


@pytest.mark.parametrize(
    ("id", "wanted", "fits"),
    [
        ("tf_efficientnet_b0.ns_jft_in1k", "tf_efficientnet_b0", True),  # timm's default tag
        ("tf_efficientnet_b0", "tf_efficientnet_b0.ns_jft_in1k", True),  # random, or said by hand
        ("tf_efficientnet_b4", "tf_efficientnet_b0.ns_jft_in1k", False),
        ("efficientnet_b0.ra_in1k", "tf_efficientnet_b0", False),
        ("tf_efficientnet_b0.ap_in1k", "tf_efficientnet_b0.aa_in1k", False),
    ],
)
def test_sources_agree_in_their_model_and_in_the_tag_where_both_have_one(id, wanted, fits):
    if fits:
        params.check({"id": id}, {"source": wanted})
    else:
        with pytest.raises(WeightsError, match="source: found"):
            params.check({"id": id}, {"source": wanted})


@pytest.mark.parametrize("strange", ["abc", [1], None, {}])
def test_check_survives_strange_records(strange):
    for field in (*RECORD, *CLAIMS):
        key = "id" if field == "source" else field
        with pytest.raises(WeightsError, match=f"{field}: found"):
            params.check({key: strange}, {field: {**RECORD, **CLAIMS}[field]})


def test_describe_is_total():
    text = params.describe(MADE)
    for fact in ("(source timm,", "3D by repeat", "16 input channels by tile", "eps 0.001"):
        assert fact in text
    for record in ({}, {"eps": "1e-3"}, {"eps": None, "ndim": [3]}):
        assert "eps " in params.describe(record)
    assert "unknown (source unknown," in params.describe({}) and "None" not in params.describe({})


def test_merge_fills_its_modules_and_touches_nothing_else(arrays, variables):
    merged, report = params.merge(variables, params.Weights(arrays))
    flat = params.flatten(merged)
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
        params.merge(variables, params.Weights(arrays, path=Path("some/w.safetensors")))
    text = str(caught.value)
    assert text.startswith("some/w.safetensors does not fit the model (4 problems)")
    assert "missing in the file: params/encoder/stem/bn/scale" in text
    assert "missing in the file: batch_stats/encoder/stem/bn/mean" in text  # whole collection
    assert "unknown to the model: params/encoder/stem/extra" in text
    assert "params/encoder/stem/kernel: found (3, 3, 4, 9), expected (3, 3, 4, 8)" in text


def test_merge_into_a_model_without_that_module(arrays):
    with pytest.raises(WeightsError, match="unknown to the model: params/encoder/stem/kernel"):
        params.merge({"params": {"head": {"kernel": jnp.zeros(3)}}}, params.Weights(arrays))


def test_skip_leaves_fresh_and_unused_as_asked(arrays, variables):
    arrays["params/encoder/stem/kernel"] = np.zeros((3, 3, 5, 8), np.float32)  # would not fit
    arrays["params/encoder/top/kernel"] = np.zeros(3, np.float32)
    skip = ["encoder/stem/kernel", "encoder/top/.*"]
    merged, report = params.merge(variables, params.Weights(arrays), skip=skip)
    assert report.fresh == ("params/encoder/stem/kernel",)
    assert report.unused == ("params/encoder/stem/kernel", "params/encoder/top/kernel")
    kept = variables["params"]["encoder"]["stem"]["kernel"]
    np.testing.assert_array_equal(merged["params"]["encoder"]["stem"]["kernel"], kept)


def test_the_classification_head_is_reported_and_not_merged(arrays, variables):
    """Nor is it mistaken for a module of the model that is called `head`."""
    arrays |= {f"head/encoder/classifier/{leaf}": np.zeros(3, np.float32) for leaf in "ab"}
    merged, report = params.merge(variables, params.Weights(arrays))
    np.testing.assert_array_equal(merged["params"]["head"]["kernel"], 7.0)
    assert merged.keys() == {"params", "batch_stats"} and len(report.filled) == 3
    assert report.unused == ("head/encoder/classifier/a", "head/encoder/classifier/b")
    assert str(report) == (
        "3 tensors from the file, 0 left fresh and 0 left out by skip patterns, 1 in other "
        "modules; 2 of the classification head not used"
    )
    for pattern in ("head/.*", "classifier/.*"):
        with pytest.raises(WeightsError, match="matches no path"):
            params.merge(variables, params.Weights(arrays), skip=[pattern])


def test_a_module_called_head_keeps_its_name_in_patterns():
    """`head` is a collection of weight files, not one that patterns may leave out."""
    with pytest.raises(WeightsError, match="'kernel': matches no path"):
        params.select(["kernel"], ["head/kernel", "encoder/kernel"])


def test_how_kernels_extend_along_depth_is_read_off_their_shapes():
    shapes = {
        "params/encoder/conv_stem/kernel": (1, 3, 3, 4, 8),
        "params/encoder/bn1/scale": (8,),
        "params/encoder/blocks_0_0/conv_dw/kernel": (3, 3, 3, 1, 8),
        "params/encoder/blocks_0_0/conv_pw/kernel": (1, 1, 1, 8, 8),
        "params/encoder/blocks_2_0/conv_dw/kernel": (4, 5, 5, 5, 1, 8),  # four experts
        "params/decoder/conv/kernel": (7, 7, 7, 8, 8),
    }
    assert params.depth_form(shapes, 3) == {"depth_taps": [1, 3, 1, 5], "factorised": False}
    shapes["params/encoder/blocks_1_0/conv_dw/kernel"] = (1, 3, 3, 1, 8)
    shapes["params/encoder/blocks_1_0/conv_dw/depth_kernel"] = (2, 1, 1, 1, 8)
    assert params.depth_form(shapes, 3) == {"depth_taps": [1, 3, 2, 5], "factorised": True}
    assert params.depth_form(shapes, 2) == {"depth_taps": None, "factorised": None}


@pytest.mark.parametrize(
    ("field", "found", "wanted", "fits"),
    [
        ("depth_taps", [3, 3], [3, 3], True),
        ("depth_taps", [1, 3], [3, 3], False),
        ("depth_taps", None, [3, 3], True),  # an older file: the shapes will tell
        ("factorised", True, False, False),
        ("factorised", None, False, True),
        ("inflate_at", ["a=mean"], ("a=mean",), True),
        ("inflate_at", ["a=mean"], (), False),
        ("inflate_at", None, (), True),
        ("inflate_at", None, ("a=mean",), False),
        ("inflate_at", ["a=mean"], None, True),  # a config that does not say
        ("norm", "frozen", "batch", True),  # the same tensors
        ("norm", "batch", "frozen", True),
        ("norm", "instance", "frozen", False),
    ],
)
def test_check_of_depth_options_and_norms(field, found, wanted, fits):
    if fits:
        params.check({field: found}, {field: wanted})
    else:
        with pytest.raises(WeightsError, match=f"{field}: found"):
            params.check({field: found}, {field: wanted})


def test_a_skip_pattern_that_matches_nothing_is_an_error(arrays, variables):
    with pytest.raises(WeightsError, match="'head/.*': matches no path"):
        params.merge(variables, params.Weights(arrays), skip=["head/.*"])  # outside: not merged


def test_merge_keeps_dtype_and_sharding(arrays, variables):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec(None, None, None, "data"))
    stem = variables["params"]["encoder"]["stem"]
    stem["kernel"] = jax.device_put(stem["kernel"].astype(jnp.bfloat16), spread)
    merged, _ = params.merge(variables, params.Weights(arrays))
    kernel = merged["params"]["encoder"]["stem"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding == spread
    expected = arrays["params/encoder/stem/kernel"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(kernel), expected)


def test_merged_arrays_are_committed_only_where_the_model_is(arrays, variables):
    """Otherwise a model that was free to move would be pinned to the first device."""
    merged, _ = params.merge(variables, params.Weights(arrays))
    assert not any(leaf.committed for leaf in jax.tree.leaves(merged))


def test_merge_into_abstract_variables(arrays, variables):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    abstract = jax.eval_shape(lambda: variables)
    abstract["params"]["encoder"]["stem"]["bn"]["scale"] = jax.ShapeDtypeStruct(
        (8,), jnp.float32, sharding=everywhere
    )
    merged, _ = params.merge(abstract, params.Weights(arrays))
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
        "import crossdim_jax.models, crossdim_jax.params\n"
        "assert not {'torch', 'timm'} & set(sys.modules), 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
