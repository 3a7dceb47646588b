"""A file's record is what the network needs and the config says, or the file is refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import models
from crossdim_jax.errors import WeightsError
from crossdim_jax.weights.file import load_weights, save_weights
from crossdim_jax.weights.merge import requirements
from crossdim_jax.weights.record import check_fit, check_statistics, describe, inflations
from tests.weight_record import CLAIMS, NETWORK, RECORD

WHOLE = RECORD | {  # as weight_port writes it for these
    "depth_kernels": [3, 3, 3, 5, 3, 5, 5, 3],
    "factorised": False,
    "statistics": "dropped",
}


# ------------------------------------------------------------------ needs


def test_check_accepts_equal_records():
    check_fit(NETWORK, json.loads(json.dumps(NETWORK)))
    check_fit(NETWORK, {**NETWORK, "norm": "group"})  # the same tensors


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
    expected = {**NETWORK, field: wanted}
    found = f"{field}: found {NETWORK[field]!r}, expected {wanted!r}. \\w+"
    with pytest.raises(WeightsError, match=f"(?s)^w.safetensors .*{found}.*weight_port"):
        check_fit(NETWORK, expected, name="w.safetensors")
    check_fit(NETWORK, expected, ignore=[field])


def test_check_lists_all_differences_and_unknown_ignores():
    with pytest.raises(WeightsError) as caught:
        check_fit({}, NETWORK)
    assert str(caught.value).count("found nothing") == len(NETWORK)
    with pytest.raises(WeightsError, match="Cannot ignore pading"):
        check_fit(NETWORK, NETWORK, ignore=["pading"])


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
        check_fit({field: found}, {field: wanted})
    else:
        with pytest.raises(WeightsError, match=f"{field}: found"):
            check_fit({field: found}, {field: wanted})


# ------------------------------------------------------------------ claims


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
    expected = {**NETWORK, **CLAIMS}
    check_fit(RECORD, expected)
    expected[field] = wanted
    found = re.escape(
        f"{field}: found {CLAIMS[field]!r}, expected {wanted!r}. Change config.weights"
    )
    with pytest.raises(WeightsError, match=f"(?s)^w.safetensors .*{found}"):
        check_fit(RECORD, expected, name="w.safetensors")
    check_fit(RECORD, expected, ignore=[field])


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_empty_claim_is_not_compared_and_may_be_ignored(nothing):
    expected = {**NETWORK, **dict.fromkeys(CLAIMS, nothing)}
    check_fit(RECORD, expected)
    check_fit(NETWORK, expected, ignore=["source", "inflate", "stem"])


def test_a_record_without_what_is_claimed_is_refused():
    with pytest.raises(WeightsError) as caught:
        check_fit(NETWORK, {**NETWORK, **CLAIMS})
    assert str(caught.value).count("found nothing") == len(CLAIMS)


def test_claims_are_compared_only_where_they_matter():
    flat = {**RECORD, "ndim": 2, "inflate": None}
    check_fit(flat, {**NETWORK, **CLAIMS, "ndim": 2})  # 2D weights are not inflated
    colour = {**RECORD, "in_channels": 3}
    wanted = {**NETWORK, **CLAIMS, "in_channels": 3}
    check_fit(colour, {**wanted, "stem": "gray"})  # both leave three channels as they are
    with pytest.raises(WeightsError, match="stem: found 'tile', expected 'reinit'"):
        check_fit(colour, {**wanted, "stem": "reinit"})


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
        check_fit({"id": id}, {"source": wanted})
    else:
        with pytest.raises(WeightsError, match="source: found"):
            check_fit({"id": id}, {"source": wanted})


@pytest.mark.parametrize("strange", ["abc", [1], None, {}])
def test_check_survives_strange_records(strange):
    for field in (*NETWORK, *CLAIMS):
        key = "id" if field == "source" else field
        with pytest.raises(WeightsError, match=f"{field}: found"):
            check_fit({key: strange}, {field: {**NETWORK, **CLAIMS}[field]})


def test_describe_is_total():
    text = describe(RECORD)
    for fact in ("(source timm,", "3D by repeat", "16 input channels by tile", "eps 0.001"):
        assert fact in text
    for record in ({}, {"eps": "1e-3"}, {"eps": None, "ndim": [3]}):
        assert "eps " in describe(record)
    assert "unknown (source unknown," in describe({}) and "None" not in describe({})


# ------------------------------------------------------------------ files for a network


@pytest.fixture
def arrays(rng):
    shapes = {"params/encoder/b/kernel": (3, 3, 4, 8), "params/encoder/a/scale": (8,)}
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.fixture
def file(tmp_path, arrays):
    return save_weights(tmp_path / "w.safetensors", arrays, WHOLE)


@pytest.fixture(scope="module")
def needs():
    """What DX-Net needs, with the config's own words."""
    model = models.build("dxnet", ops="lax")
    image = jax.ShapeDtypeStruct((1, 32, 32, 32, 4), jnp.float32)
    claims = {"source": WHOLE["id"], "inflate": "repeat", "stem": "tile"}
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return requirements(model, variables) | claims


def test_the_file_that_is_asked_for_is_taken(file, needs):
    check_fit(load_weights(file).metadata, needs)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architecture": "efficientnet_b4"}, "architecture: found 'efficientnet_b4', expected"),
        ({"padding": "symmetric"}, "padding: found 'symmetric', expected 'same'"),
        ({"eps": 1e-5}, "eps: found 1e-05, expected 0.001"),
        ({"in_channels": 4}, "in_channels: found 4, expected 16"),
    ],
    ids=["architecture", "padding", "eps", "channels"],
)
def test_weights_of_another_network_are_refused(change, match, arrays, needs, tmp_path):
    path = save_weights(tmp_path / "other.safetensors", arrays, WHOLE | change)
    weights = load_weights(path)
    with pytest.raises(WeightsError, match=f"(?s)other.safetensors is not.*{match}"):
        check_fit(weights.metadata, needs, name=weights.name)


# ------------------------------------------------------------------ running statistics


BATCH = WHOLE | {"norm": "batch", "statistics": "carried"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"norm": "frozen"},
        {"statistics": None},  # from before the record said so
        {"inflate": "mean", "inflate_at": ["blocks_1_.*=repeat"]},
        {"statistics": "stale"},
        {"inflate": "mean", "statistics": "stale"},
    ],
    ids=str,
)
def test_statistics_that_do_not_describe_the_weights_are_refused(change, needs):
    record = BATCH | change
    expected = needs | {"norm": record["norm"], "inflate": record["inflate"], "inflate_at": None}
    with pytest.raises(WeightsError, match=r"w.safetensors: found .*statistics.*reestimate=16"):
        check_fit(record, expected, name="w.safetensors")
    check_statistics(record, reestimate=8)  # they will be measured anew


@pytest.mark.parametrize(
    "change",
    [
        {"inflate": "mean"},
        {"norm": "instance", "statistics": "dropped"},
        {"statistics": "reestimated (8)"},
        {"ndim": 2, "inflate": None},
    ],
    ids=str,
)
def test_statistics_that_do_are_taken(change):
    check_statistics(BATCH | change)


def test_all_modes_of_a_record_are_found():
    assert inflations({"inflate": "mean", "inflate_at": ["a=b_.*=center"]}) == {"mean", "center"}
    assert inflations({"inflate": None}) == set()
