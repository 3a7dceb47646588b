"""Every tensor of both sides is accounted for, and ends where it belongs."""

import dataclasses
import types

import flax.linen as nn
import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.weights.merge import requirements
from crossdim_jax.weights.paths import unflatten
from crossdim_jax.weights.recipe import Recipe, stem_path, target_shapes
from tests.weight_port import short
from weight_port.convert import convert
from weight_port.families.efficientnet import flax_path
from weight_port.names import parse_name
from weight_port.rename import UNUSED
from weight_port.source import Name, Source

NAME = "tf_efficientnet_b0"
STEM = stem_path("efficientnet_b0")
FLAT = Recipe(ndim=2, in_channels=3, norm="batch", inflate=None, stem="tile")
DEEP = Recipe(ndim=3, in_channels=16, norm="instance", inflate="mean", stem="tile")


@pytest.fixture(scope="module", autouse=True)
def _short():
    with short.cut():
        yield


@pytest.fixture
def source(make_source):
    return make_source(NAME)


def altered(source, **changes):
    """The source with tensors replaced (by dotted name), or removed where None."""
    arrays = {**source.arrays, **{k.replace("/", "."): v for k, v in changes.items()}}
    return dataclasses.replace(source, arrays={k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    ("torch_name", "path"),
    [
        ("conv_stem.weight", "params/encoder/conv_stem/kernel"),
        ("bn1.weight", "params/encoder/bn1/scale"),
        ("bn1.running_var", "batch_stats/encoder/bn1/var"),
        ("blocks.3.12.conv_pwl.weight", "params/encoder/blocks_3_12/conv_pwl/kernel"),
        ("blocks.0.0.se.conv_reduce.bias", "params/encoder/blocks_0_0/se/conv_reduce/bias"),
        ("blocks.0.0.bn2.running_mean", "batch_stats/encoder/blocks_0_0/bn2/mean"),
        ("attention.weight", None),
        ("conv_stem.gamma", None),
    ],
)
def test_names(torch_name, path):
    assert flax_path(torch_name) == path


def test_only_step_counters_are_unused_whatever_the_recipe():
    assert UNUSED.fullmatch("bn2.num_batches_tracked") and not UNUSED.fullmatch("bn2.weight")


@pytest.mark.parametrize(
    "recipe",
    [
        FLAT,
        dataclasses.replace(FLAT, head=False),
        dataclasses.replace(FLAT, norm="frozen"),
        DEEP,
        dataclasses.replace(DEEP, norm="batch"),
        dataclasses.replace(DEEP, depth_kernels=(1, 3, 3, 2, 3, 4, 5, 3), factorised=True),
    ],
    ids=str,
)
def test_accounts_are_complete(source, recipe):
    done = convert(source, recipe)
    assert set(done.used) | set(done.unused) == set(source.arrays)
    assert not set(done.used) & set(done.unused)
    shapes = {p: array.shape for p, array in done.arrays.items() if not p.startswith("head/")}
    assert shapes == target_shapes("efficientnet_b0", recipe)
    assert all(array.dtype == np.float32 for array in done.arrays.values())
    statistics = [n for n in done.unused if n.rsplit(".", 1)[1] in ("running_mean", "running_var")]
    heads = [path for path in done.arrays if path.startswith("head/")]
    kept = recipe.ndim == 2 and recipe.head
    assert len(heads) == (7 if kept else 0)
    # The head's own two, or all; or none, where the head is kept.
    assert len(statistics) == (50 if recipe.norm == "instance" else 0 if kept else 2)
    assert ("classifier.weight" in done.unused) == (not kept)


def test_the_head_keeps_its_values_and_its_layout(source):
    arrays = convert(source, FLAT).arrays
    for name, ours, order in [
        ("conv_head.weight", "conv_head/kernel", (2, 3, 1, 0)),
        ("bn2.running_var", "bn2/var", (0,)),
        ("classifier.weight", "classifier/kernel", (1, 0)),
        ("classifier.bias", "classifier/bias", (0,)),
    ]:
        expected = source.arrays[name].transpose(order)
        np.testing.assert_array_equal(arrays[f"head/encoder/{ours}"], expected)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_scale_and_bias_carry_over_to_other_norms(source, norm):
    done = convert(source, dataclasses.replace(DEEP, norm=norm))
    assert not any(path.startswith("batch_stats") for path in done.arrays)
    inner = "params/encoder/blocks_1_1/bn3"
    np.testing.assert_array_equal(
        done.arrays[f"{inner}/scale"], source.arrays["blocks.1.1.bn3.weight"]
    )
    np.testing.assert_array_equal(
        done.arrays[f"{inner}/bias"], source.arrays["blocks.1.1.bn3.bias"]
    )


def test_kernels_end_in_the_right_layout(source):
    done = convert(source, DEEP)
    depthwise = source.arrays["blocks.2.0.conv_dw.weight"]  # (c, 1, 5, 5)
    found = done.arrays["params/encoder/blocks_2_0/conv_dw/kernel"]
    assert found.shape == (5, 5, 5, 1, depthwise.shape[0])
    np.testing.assert_allclose(found[2, 1, 3, 0, 7], depthwise[7, 0, 1, 3] / 5, rtol=1e-6)
    pointwise = source.arrays["blocks.2.0.conv_pw.weight"]  # (out, in, 1, 1)
    found = done.arrays["params/encoder/blocks_2_0/conv_pw/kernel"]
    np.testing.assert_array_equal(found[0, 0, 0], pointwise[:, :, 0, 0].T)


def test_the_stem_is_adapted_then_inflated(source):
    found = convert(source, DEEP).arrays[STEM]
    stem = source.arrays["conv_stem.weight"]  # (32, 3, 3, 3)
    assert found.shape == (3, 3, 3, 16, 32)
    np.testing.assert_allclose(
        found[1, 0, 2, 4, 5], stem[5, 1, 0, 2] * 3 / 16 / 3, rtol=1e-6
    )  # channel 4 is green again


def test_patterns_choose_modes_and_the_last_one_counts(source):
    choices = ("blocks_[16]_.*=center", "encoder/blocks_1_1/conv_dw/kernel=sqrt")
    done = convert(source, dataclasses.replace(DEEP, inflate_at=choices))
    plain = convert(source, DEEP)
    modes = {path.removeprefix("params/encoder/"): mode for path, mode in done.modes.items()}
    assert modes["blocks_1_0/conv_dw/kernel"] == modes["blocks_6_0/conv_dw/kernel"] == "center"
    assert modes["blocks_1_1/conv_dw/kernel"] == "sqrt"
    assert modes["conv_stem/kernel"] == modes["blocks_4_0/conv_dw/kernel"] == "mean"
    for path, array in done.arrays.items():
        same = np.array_equal(array, plain.arrays[path])
        assert same == (done.modes.get(path, "mean") == "mean"), path
    center = done.arrays["params/encoder/blocks_6_0/conv_dw/kernel"]
    flat = source.arrays["blocks.6.0.conv_dw.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(center[1], flat)


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ("blocks_9_.*=center", "'blocks_9_.*': matches no path"),
        (".*/conv_pw/kernel=center", "matches no path"),  # 1x1: nothing to inflate
        ("blocks_(=center", "not a regular expression"),
    ],
)
def test_patterns_that_choose_no_kernel_are_errors(choice, match, source):
    with pytest.raises(WeightsError, match=match):
        convert(source, dataclasses.replace(DEEP, inflate_at=(choice,)))


def test_depth_taps_follow_the_stages(source):
    taps = (1, 3, 2, 4, 3, 7, 5, 1)
    recipe = dataclasses.replace(DEEP, depth_kernels=taps)
    arrays = convert(source, recipe).arrays
    assert arrays[STEM].shape == (1, 3, 3, 16, 32)
    for stage, depth in enumerate(taps[1:]):
        path = f"blocks_{stage}_0/conv_dw"
        kernel = arrays[f"params/encoder/{path}/kernel"]
        assert kernel.shape[0] == depth
        flat = source.arrays[f"blocks.{stage}.0.conv_dw.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_allclose(kernel.sum(0), flat, rtol=1e-5, atol=1e-6)


def test_factorised_kernels_multiply_to_the_dense_ones(source):
    """Of every mode, on the real encoder's tensors, with other depths than in the plane."""
    recipe = dataclasses.replace(DEEP, inflate="gaussian", depth_kernels=(1, 3, 2, 4, 3, 3, 3, 1))
    dense = convert(source, recipe).arrays
    apart = convert(source, dataclasses.replace(recipe, factorised=True)).arrays
    filters = [path for path in apart if path.endswith("depth_kernel")]
    assert len(filters) == 7  # of 8 blocks, the last has one tap along depth
    for path, array in dense.items():
        partner = path.replace("conv_dw/kernel", "conv_dw/depth_kernel")
        found = apart[path] * apart[partner] if partner in filters else apart[path]
        np.testing.assert_allclose(found, array, rtol=1e-6, atol=1e-9)


def test_acs_names_the_kernels_it_cannot_make(source):
    recipe = dataclasses.replace(DEEP, inflate="acs")
    assert convert(source, recipe).modes[STEM] == "acs"
    with pytest.raises(WeightsError, match="(?s)blocks_2_0/conv_dw/kernel: 5x5, 3 taps.*blocks_4"):
        convert(source, dataclasses.replace(recipe, depth_kernels=3))
    apart = dataclasses.replace(DEEP, factorised=True, inflate_at=("blocks_1_.*=acs",))
    with pytest.raises(WeightsError, match="blocks_1_0/conv_dw/kernel: 3x3, factorised"):
        convert(source, apart)
    convert(source, dataclasses.replace(apart, inflate_at=("conv_stem/.*=acs",)))  # it is dense


def test_statistics_to_measure_are_fresh_where_the_source_has_none(source):
    bare = {n: a for n, a in source.arrays.items() if "running_" not in n and "num_" not in n}
    bare = dataclasses.replace(source, arrays=bare)
    recipe = dataclasses.replace(DEEP, norm="batch")
    with pytest.raises(WeightsError, match="48 problems"):
        convert(bare, recipe)
    done = convert(bare, dataclasses.replace(recipe, statistics="reestimate"))
    assert len(done.fresh) == 48 and "batch_stats/encoder/bn1/mean" in done.fresh
    assert (done.arrays["batch_stats/encoder/bn1/var"] == 1).all()


@pytest.mark.parametrize("policy", ["reinit", "released"])
def test_a_drawn_stem_is_listed_as_fresh(source, policy):
    recipe = dataclasses.replace(DEEP, stem=policy, seed=3)
    done = convert(source, recipe)
    assert done.fresh == (STEM,) and "conv_stem.weight" in done.unused
    other = convert(source, dataclasses.replace(recipe, seed=4))
    assert not np.array_equal(done.arrays[STEM], other.arrays[STEM])


class Plain(nn.Module):
    """An encoder whose first kernel has a name of its own."""

    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        return [nn.Conv(4, (3,) * (x.ndim - 2), use_bias=False, name="conv_first")(x)]


def test_another_encoders_stem_is_found_by_its_row(monkeypatch, rng):
    row = encoders.Encoder(
        "efficientnet", Plain, "conv_first/kernel", "batch", tuple, tuple, stage="(?!)"
    )
    monkeypatch.setitem(encoders.ENCODERS, "plain", row)
    kernel = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    origin = {"id": "plain", "file": None}
    name = Name("plain", "plain", "plain", "same", 1e-3)
    done = convert(Source(name, {"conv_first.weight": kernel}, origin), DEEP)
    (path,) = done.arrays
    assert path == "params/encoder/conv_first/kernel" == stem_path("plain")
    assert done.arrays[path].shape == (3, 3, 3, 16, 4)
    np.testing.assert_allclose(done.arrays[path][2, 0, 1, 5, 3], kernel[3, 2, 0, 1] / 16, rtol=1e-6)
    model = types.SimpleNamespace(encoder=encoders.EncoderSpec("plain", norm="instance"))
    needs = requirements(model, unflatten(done.arrays))
    assert (needs["ndim"], needs["in_channels"]) == (3, 16)


def test_everything_wrong_is_listed_at_once(source):
    faulty = altered(
        source,
        **{
            "surprise.weight": np.zeros(3, np.float32),
            "bn1.bias": None,
            "blocks.1.0.conv_pw.weight": np.zeros((4, 4, 1, 1), np.float32),
            "blocks.1.0.bn1.weight": np.full(96, np.nan, np.float32),
        },
    )
    with pytest.raises(WeightsError) as caught:
        convert(faulty, DEEP)
    text = str(caught.value)
    assert "4 problems" in text and "x.safetensors" in text
    assert "unknown in the source: surprise.weight (3,)" in text
    assert "missing in the source: params/encoder/bn1/bias" in text
    assert "blocks.1.0.conv_pw.weight: found (1, 1, 4, 4), expected (1, 1, 16, 96)" in text
    assert "blocks.1.0.bn1.weight: holds NaN" in text


def test_a_checkpoint_of_another_architecture_is_refused(source):
    wrong = dataclasses.replace(source, name=parse_name("tf_efficientnet_b4"))
    with pytest.raises(WeightsError, match="another architecture"):
        convert(wrong, FLAT)


def test_repeat_with_running_statistics_is_refused():
    for change in ({"inflate": "repeat"}, {"inflate_at": ("blocks_0_.*=repeat",)}):
        for norm in ("batch", "frozen"):
            with pytest.raises(WeightsError, match="repeat.*--statistics=reestimate"):
                dataclasses.replace(DEEP, norm=norm, **change)
    dataclasses.replace(DEEP, norm="instance", inflate="repeat")  # measures its own
    dataclasses.replace(DEEP, norm="batch", inflate="repeat", statistics="reestimate")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ndim": 4}, "expected 2 or 3"),
        ({"inflate": None}, "need an inflation mode"),
        ({"inflate": "cubic"}, "repeat, mean, center"),
        ({"ndim": 2}, "is for 3D"),
        ({"norm": "local"}, "batch, instance, group"),
        ({"stem": "sum"}, "1 input channel, found 16"),
        ({"stem": "grey"}, "tile, gray"),
        ({"in_channels": 0}, "found 0"),
        ({"inflate_at": ("center",)}, "expected PATTERN=MODE"),
        ({"inflate_at": ("a=b=cubic",)}, "'cubic' is unknown; known"),
        ({"inflate": "acs", "factorised": True}, "'acs' is no product"),
        ({"ndim": 2, "inflate": None, "factorised": True}, "3D weights only: factorised"),
        ({"ndim": 2, "inflate": None, "depth_kernels": 3}, "3D weights only: depth kernels"),
        ({"statistics": "reestimate"}, "'instance' keeps no running statistics"),
        ({"statistics": "measure"}, "known: carry, reestimate"),
    ],
)
def test_recipes_that_make_no_sense(change, match):
    with pytest.raises(WeightsError, match=match):
        dataclasses.replace(DEEP, **change)
