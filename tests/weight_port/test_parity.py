"""A ported 2D encoder is timm's network: the same features and logits on the same input."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from crossdim_jax.models import encoders
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.merge import merge
from crossdim_jax.weights.paths import unflatten
from crossdim_jax.weights.recipe import Recipe, target_shapes
from tests.weight_port import conftest, short
from weight_port import families, names, rename
from weight_port.convert import convert
from weight_port.families import efficientnet

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

EFFICIENTNETS = sorted(
    model
    for pattern in ("efficientnet_*", "tf_efficientnet_*", "tf_efficientnetv2_*")
    for model in timm.list_models(pattern)
)
# All but Keras' forms, which timm has not, and two that would take 20 GB.
ALL = sorted(
    model
    for row in names.supported()
    for model in row.models
    if timm.is_model(model) and model not in ("regnety_1280", "regnety_2560")
)


def timm_outputs(model, image, family=None):
    """Our features by hooks, and the logits.

    Of an EfficientNet the stem's activated output, then what timm's own features_only picks below
    half resolution; of another family the modules that it names.
    """
    kept = []
    taps = [f["module"] for f in model.feature_info if f["reduction"] > 2]
    own = family is None or family is efficientnet
    modules = [model.bn1, *map(model.get_submodule, taps)] if own else family.feature_modules(model)
    hooks = [m.register_forward_hook(lambda _, __, out: kept.append(out.clone())) for m in modules]
    with torch.no_grad():
        nchw = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
        logits = model(nchw.to(next(model.parameters()).dtype))
    for hook in hooks:
        hook.remove()
    return [feature.numpy().transpose(0, 2, 3, 1) for feature in kept], logits.numpy()


def our_outputs(source, image, **attributes):
    """The encoder with the source's weights, merged as training merges them; then the head."""
    name = source.name
    norm = encoders.norm(name.architecture)
    settings = {"norm": norm, "padding": name.padding, "eps": name.eps} | attributes
    encoder = encoders.build(name.architecture, **settings)
    recipe = Recipe(ndim=2, in_channels=3, norm=norm, inflate=None, stem="tile")
    shapes = target_shapes(name.architecture, recipe)
    abstract = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    arrays = convert(source, recipe).arrays
    merged, report = merge(unflatten(abstract), Weights(arrays))
    assert not report.fresh and not report.outside
    assert all(path.startswith("head/") for path in report.unused)
    variables = {collection: tree["encoder"] for collection, tree in merged.items()}
    apply = jax.jit(encoder.apply)
    with jax.default_matmul_precision("highest"):
        features = [np.asarray(feature) for feature in apply(variables, image)]
        logits = families.of(name.architecture).logits
        logits = logits(name.architecture, arrays, features[-1], eps=name.eps)
    return features, np.asarray(logits)


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def check_parity(name, size, timm_model, make_source, rng, *, own_rounding=False, **attributes):
    """Features and logits to 1e-5, or to twice timm's own distance from its float64 self."""
    image = rng.normal(size=(2, *size, 3)).astype(np.float32)
    family = families.of(names.parse_name(name).architecture)
    features, logits = timm_outputs(timm_model(name), image, family)
    expected, bounds = [*features, logits], [1e-5] * (len(features) + 1)
    if own_rounding:
        features, logits = timm_outputs(copy.deepcopy(timm_model(name)).double(), image, family)
        exact = [*features, logits]
        bounds = [max(1e-5, 2 * relative_error(a, b)) for a, b in zip(expected, exact, strict=True)]
    source = make_source(name)
    features, logits = our_outputs(source, image, **attributes)
    info = encoders.feature_info(source.name.architecture)
    for feature, announced in zip(features, info, strict=True):
        # A pooling without padding leaves out the last pixel of an odd size.
        up, down = (tuple(s * (s * n // announced.reduction) for n in size) for s in (-1, 1))
        assert feature.shape[1:-1] in (up, down) and feature.shape[-1] == announced.channels
    for ours, theirs, bound in zip([*features, logits], expected, bounds, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < bound


# One of every kind of block, norm and convention; the slow test has all, and whole. All odd sizes
# (65, 33, 17, ...) are where the two conventions agree; even is where they differ. 70 and 75 meet
# both on the way down.
FAMILIES = [
    *("tf_efficientnetv2_b0", "tf_efficientnet_lite0", "efficientnet_es"),
    *("efficientnet_cc_b0_4e", "efficientnet_b0_g8_gn", "efficientnet_b0_g16_evos"),
    *("efficientnet_blur_b0", "efficientnet_x_b3"),
]
# What these have of their own: nothing.
ALIKE = ("tf_efficientnet_cc_b0_4e", "efficientnet_b0_gn", "efficientnet_b1_pruned")


@short.cut()
def test_b0_equals_timm(timm_model, make_source, rng):
    check_parity("tf_efficientnet_b0", (70, 75), timm_model, make_source, rng)


@pytest.mark.slow
def test_the_whole_b0_equals_timm(timm_model, make_source, rng):
    check_parity("tf_efficientnet_b0", (70, 75), timm_model, make_source, rng)


@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param("tf_efficientnet_b0", (65, 97), marks=pytest.mark.slow)]
    + [(name, (70, 75)) for name in ("efficientnet_b0", *FAMILIES)]
    + [pytest.param(name, (70, 75), marks=pytest.mark.slow) for name in ALIKE],
    ids=str,
)
@short.cut()
def test_every_family_equals_timm(name, size, timm_model, make_source, rng):
    # Fewer operations to compile; that both formulations agree is tested elsewhere.
    check_parity(name, size, timm_model, make_source, rng, ops_mode="lax")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_network_equals_timm(name, timm_model, make_source, rng):
    # Dozens of random blocks amplify rounding, timm's as ours; pre-trained ones less.
    options = {"own_rounding": True, "ops_mode": "lax"}
    check_parity(name, (70, 75), timm_model, make_source, rng, **options)
    conftest.random_timm.cache_clear()  # together they would take 10 GB


def test_every_network_of_timm_has_a_place():
    """timm's list and ours are the same but for what is left out on purpose."""
    listed = {model for row in names.supported() for model in row.models}
    of_timm = {m for m in timm.list_models("*efficientnet*") if not names.left_out(m)}
    assert set(EFFICIENTNETS) <= {m for m in listed if "efficientnet" in m} == of_timm


@pytest.mark.parametrize("name", ["tf_efficientnetv2_b0", "efficientnet_cc_b0_4e"])
@short.cut()
def test_names_and_layouts_invert(name, timm_model, make_source):
    arrays = make_source(name).arrays
    recipe = Recipe(ndim=2, in_channels=3, norm="batch", inflate=None, stem="tile")
    shapes = target_shapes(names.parse_name(name).architecture, recipe)
    for torch_name, array in arrays.items():
        if not rename.UNUSED.fullmatch(torch_name):
            path = efficientnet.flax_path(torch_name)
            ours = efficientnet.to_flax_layout(array, path, shapes.get(path))
            assert efficientnet.torch_name(path) == torch_name
            np.testing.assert_array_equal(efficientnet.to_torch_layout(ours, path), array)
            assert path.startswith("head/") or ours.shape == shapes[path]


@pytest.mark.parametrize(
    "name", ["efficientnet_cc_b0_4e", "efficientnet_x_b3", "efficientnet_b0_g8_gn"]
)
@short.cut()
def test_every_kind_of_kernel_inflates_and_factorises(name, make_source):
    source = make_source(name)
    recipe = Recipe(ndim=3, in_channels=3, norm="instance", inflate="center", stem="tile")
    dense = convert(source, recipe).arrays
    parts = convert(source, dataclasses.replace(recipe, factorised=True)).arrays
    filters = [path for path in parts if path.endswith("/depth_kernel")]
    assert filters
    for path in filters:
        kernel = path.replace("depth_kernel", "kernel")
        np.testing.assert_array_equal(parts[kernel] * parts[path], dense[kernel])
    for path, array in dense.items():
        if path.endswith("/kernel"):  # centre inflation keeps the 2D kernel in the sum over depth
            flat = source.arrays[efficientnet.torch_name(path)]
            found = efficientnet.to_torch_layout(array.sum(-5), path)
            np.testing.assert_allclose(found, flat, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [pytest.param({"padding": "symmetric"}, marks=pytest.mark.slow), {"eps": 1e-5}],
    ids=["padding", "eps"],
)
@short.cut()
def test_the_other_convention_is_another_function(wrong, timm_model, make_source, rng):
    """What the parity test would see if the convention were not carried with the weights."""
    image = rng.normal(size=(1, 64, 64, 3)).astype(np.float32)
    expected = timm_outputs(timm_model("tf_efficientnet_b0"), image)[0][-1]
    found = our_outputs(make_source("tf_efficientnet_b0"), image, ops_mode="lax", **wrong)[0][-1]
    assert relative_error(found, expected) > 1e-4
