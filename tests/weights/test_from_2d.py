"""One 2D file for every network: in memory it becomes what porting writes, bit for bit."""

import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.models.encoders import EncoderSpec
from crossdim_jax.weights.file import Weights, load_weights, save_weights
from crossdim_jax.weights.from_2d import made_for
from crossdim_jax.weights.recipe import Recipe
from crossdim_jax.weights.record import describe
from tests import cut_families
from tests.weight_port import tiny
from weight_port.commands.making import record
from weight_port.convert import convert

TINY, STEM = "efficientnet_tiny", "params/encoder/conv_stem/kernel"
STAGED = (1, 3, 3, 2, 3, 4)


@pytest.fixture(autouse=True, scope="module")
def _encoders():
    with tiny.registered(), cut_families.cut():
        yield
    tiny.source.cache_clear()


def port(architecture, **recipe):
    """The tensors and the record that porting gives."""
    source = tiny.source(architecture)
    own = {"ndim": 2, "in_channels": 3, "norm": encoders.norm(architecture), "inflate": None}
    made = Recipe(**{**own, "stem": "tile", **recipe})
    converted = convert(source, made)
    return Weights(converted.arrays, record(source, made, converted))


def ask(weights, *, ndim=3, in_channels=4, norm="instance", claims=(), spec=(), **options):
    """The weights as a network with such an encoder, and a config, ask for them."""
    found = weights.metadata
    of_encoder = EncoderSpec(name=found["architecture"], norm=norm, **dict(spec))
    needs = {field: found[field] for field in ("architecture", "padding", "eps")}
    needs |= {"ndim": ndim, "in_channels": in_channels, "norm": of_encoder.own_norm}
    said = {"source": "", "inflate": "mean", "inflate_at": (), "stem": "gray"} | dict(claims)
    return made_for(weights, of_encoder, needs, said, **options)


@pytest.mark.parametrize(
    ("architecture", "norm", "claims", "spec"),
    [
        (TINY, "instance", {"inflate": "repeat"}, {}),
        (TINY, "batch", {"inflate": "mean", "stem": "tile"}, {"depth_kernels": STAGED}),
        (TINY, "frozen", {"inflate": "center", "stem": "reinit"}, {"factorised": True}),
        (TINY, "group", {"inflate": "acs", "stem": "released"}, {}),
        (TINY, "batch", {"inflate": "sqrt", "inflate_at": ("blocks_1_.*=acs",)}, {}),
        ("resnet18", "instance", {"inflate": "gaussian"}, {"depth_kernels": 1}),
        ("resnext50_32x4d", "batch", {"inflate": "gaussian"}, {"factorised": True}),
        ("convnext_cut", "instance", {"inflate": "mean", "stem": "tile"}, {"factorised": True}),
    ],
    ids=str,
)
def test_inflated_in_memory_is_ported(architecture, norm, claims, spec, tmp_path):
    flat = port(architecture)
    file = save_weights(tmp_path / "flat.safetensors", flat.arrays, flat.metadata)
    found = ask(load_weights(file), norm=norm, claims=claims, spec=spec)
    own = EncoderSpec(name=architecture, norm=norm).own_norm
    recipe = {"ndim": 3, "in_channels": 4, "norm": own, "inflate": "mean", "stem": "gray"}
    expected = port(architecture, **recipe | claims | spec)
    assert list(found.arrays) == list(expected.arrays)
    for path, array in expected.arrays.items():
        assert found.arrays[path].dtype == np.float32
        np.testing.assert_array_equal(found.arrays[path], array)
    differ = {"unused", "date", "by_way_of"}  # of timm's names here, of paths there
    assert {k: v for k, v in found.metadata.items() if k not in differ} == {
        k: v for k, v in expected.metadata.items() if k not in differ
    }
    assert found.metadata["by_way_of"]["file"] == "flat.safetensors"


def test_a_2d_network_of_other_channels_or_norm_is_served_too():
    flat = port(TINY)
    found = ask(flat, ndim=2, in_channels=16, claims={"inflate": "repeat"})
    expected = port(TINY, in_channels=16, norm="instance", stem="gray", head=False)
    assert found.arrays.keys() == expected.arrays.keys() and found.metadata["inflate"] is None
    for path, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[path], array)


def test_a_file_that_fits_or_is_no_2d_source_is_taken_as_it_is():
    flat, deep = port(TINY), port(TINY, ndim=3, inflate="mean", norm="instance")
    assert ask(flat, ndim=2, in_channels=3, norm="batch") is flat
    assert ask(deep, in_channels=3) is deep
    run = Weights(flat.arrays, flat.metadata | {"source": "run"})
    assert ask(run) is run


def test_an_adapted_stem_stays_and_does_not_become_another():
    flat = port(TINY, in_channels=4, stem="gray")
    found = ask(flat, claims={"stem": "tile"})  # `check_fit` compares the policies
    assert found.metadata["stem"] == "gray"
    np.testing.assert_allclose(found.arrays[STEM].sum(0), flat.arrays[STEM], rtol=1e-6, atol=1e-7)
    with pytest.raises(WeightsError, match="4 input channels by 'gray', asked for 2 by 'tile'"):
        ask(flat, in_channels=2, claims={"stem": "tile"})


def test_statistics_are_dropped_carried_or_measured():
    flat = port(TINY)
    assert not any(path.startswith("batch_stats/") for path in ask(flat).arrays)
    with pytest.raises(WeightsError, match="'repeat' cannot keep BatchNorm's.*reestimate=16"):
        ask(flat, norm="batch", claims={"inflate": "repeat"})
    found = ask(flat, norm="batch", claims={"inflate": "repeat"}, reestimate=16)
    assert found.metadata["statistics"] == "stale"
    without = port(TINY, norm="group")
    with pytest.raises(WeightsError, match="norm: found 'group', expected 'batch'"):
        ask(without, norm="batch")
    measured = ask(without, norm="batch", reestimate=16)
    assert not measured.arrays["batch_stats/encoder/bn1/mean"].any()
    stale = Weights(flat.arrays, flat.metadata | {"statistics": "stale"})
    assert ask(stale).metadata["statistics"] == "dropped"
    with pytest.raises(WeightsError, match="found stale"):
        ask(stale, norm="batch")


def test_what_does_not_fit_is_said_of_the_file(tmp_path):
    flat = port(TINY)
    with pytest.raises(WeightsError, match="one of: repeat, mean"):
        ask(flat, claims={"inflate": ""})
    with pytest.raises(WeightsError, match="source: found 'efficientnet_tiny', expected 'tf_b0'"):
        ask(flat, claims={"source": "tf_b0"})
    assert ask(flat, claims={"source": "tf_b0"}, ignore=("source", "stem")).metadata["ndim"] == 3
    arrays = {k: v for k, v in flat.arrays.items() if k != STEM} | {"params/encoder/x": np.ones(2)}
    wrong = Weights(arrays, flat.metadata, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="(?s)w.safetensors: does not.*unknown.*x\n.*missing"):
        ask(wrong)
    older = {k: v for k, v in flat.metadata.items() if k != "stem"}
    with pytest.raises(WeightsError, match="its record has no stem"):
        ask(Weights(flat.arrays, older))


# ------------------------------------------------------------------ controls


def test_a_control_changes_the_kernels_before_stem_and_inflation():
    """Taps and channels are those of the one 2D kernel that the control made."""
    flat = port(TINY)
    found = ask(flat, norm="batch", controlled="shuffled", seed=5)
    plane = ask(flat, ndim=2, in_channels=3, norm="batch", controlled="shuffled", seed=5)
    inflated = ask(Weights(plane.arrays, flat.metadata), norm="batch")
    for path, array in inflated.arrays.items():
        np.testing.assert_array_equal(found.arrays[path], array)
    assert not np.array_equal(found.arrays[STEM], ask(flat, norm="batch").arrays[STEM])
    record = found.metadata
    assert (record["control"], record["control_seed"]) == ("shuffled", 5)
    assert "control: shuffled kernels" in describe(record)


def test_a_control_drops_the_certificate_and_plain_weights_keep_it():
    flat = port(TINY)
    certified = Weights(flat.arrays, flat.metadata | {"certificate": {"problems": []}})
    assert "certificate" in ask(certified).metadata and "control" not in ask(certified).metadata
    assert "certificate" not in ask(certified, controlled="random").metadata


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (lambda: port(TINY, ndim=3, inflate="mean"), "found 3D weights. Give the 2D file"),
        (lambda: Weights({}, {"source": "run", "ndim": 2}), "found the encoder of a run"),
        (lambda: port(TINY, in_channels=4), "adapted to 4 input channels, expected 3"),
    ],
)
def test_a_control_needs_a_2d_files_own_kernels(weights, match):
    given = weights()
    needs = {"architecture": TINY, "padding": "same", "eps": 1e-3}
    needs |= {"ndim": 3, "in_channels": 4, "norm": "instance"}
    said = {"source": "", "inflate": "mean", "inflate_at": (), "stem": "tile"}
    with pytest.raises(WeightsError, match=match):
        made_for(given, EncoderSpec(name=TINY), needs, said, controlled="random")
