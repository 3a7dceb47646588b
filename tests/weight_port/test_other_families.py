"""ConvNeXt, DenseNet and MobileNets: parity with timm and torchvision, names, laws."""

import functools

import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.models.family import FIXED
from crossdim_jax.weights import inflate
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.recipe import Recipe, target_shapes
from tests import cut_families
from tests.weight_port import twins
from weight_port import certificate, families, forward, names, rename
from weight_port.commands import making
from weight_port.convert import convert
from weight_port.plan import by_hand
from weight_port.volume import sum_over_depth

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
CUT = ("convnext_cut", "densenetcut", "mobilenetv2_cut", "mobilenetv3_cut")
ODD = (70, 75)  # odd and even on the way down


@pytest.fixture(scope="module", autouse=True)
def _encoders():
    with cut_families.cut():
        yield
    source.cache_clear()


@functools.cache
def network(name, library="timm"):
    torch.manual_seed(0)
    return twins.randomise(twins.TWINS[name, library]())


@functools.cache
def source(name, library="timm"):
    return twins.source(name, network(name, library).state_dict())


def outputs(model, modules, image):
    """What some modules and the network give, channels last."""
    kept = []
    hooks = [m.register_forward_hook(lambda _, __, out: kept.append(out)) for m in modules]
    with torch.no_grad():
        logits = model(torch.tensor(np.moveaxis(image, -1, 1).copy()))
    for hook in hooks:
        hook.remove()
    return [np.moveaxis(feature.numpy(), 1, -1) for feature in kept], logits.numpy()


def plain(origin):
    """The 2D network as its family has it: arrays and attributes."""
    norm = encoders.norm(origin.name.architecture)
    arrays = convert(origin, Recipe(2, 3, norm, None, "tile")).arrays
    return arrays, {"norm": norm, "padding": origin.name.padding, "eps": origin.name.eps}


def check_parity(name, library, rng):
    image = rng.normal(size=(2, *ODD, 3)).astype(np.float32)
    model, (origin, found) = network(name, library), source(name, library)
    architecture = origin.name.architecture
    family, info = families.of(architecture), encoders.feature_info(architecture)
    modules = family.feature_modules(model) if library == "timm" else []
    theirs, expected = outputs(model, modules, image)
    arrays, settings = plain(origin)
    features = forward.features(architecture, arrays, image, ops_mode="lax", **settings)
    logits = np.asarray(family.logits(architecture, arrays, features[-1], eps=origin.name.eps))
    assert [f.shape[-1] for f in features] == [feature.channels for feature in info]
    for ours, their in zip(features, theirs, strict=True) if modules else ():
        assert forward.relative_error(ours, their) < 1e-5
    assert forward.relative_error(logits, expected) < 1e-5
    return found


@pytest.mark.parametrize(
    ("name", "library"),
    [slow(*twin) if twin[0].startswith("tf_") else twin for twin in twins.TWINS],
    ids=str,
)
def test_features_and_logits_are_those_of_the_library(name, library, rng):
    found = check_parity(name, library, rng)
    # torchvision's DenseNet has the names that timm's has.
    assert found == ("timm" if name == "densenetcut" else library)


def test_conventions_are_the_librarys():
    conventions = {key: source(*key)[0].name for key in twins.TWINS}
    found = {key: (name.padding, name.eps) for key, name in conventions.items()}
    assert found["convnext_cut", "torchvision"] == ("symmetric", 1e-6)
    assert found["densenetcut", "timm"] == ("symmetric", 1e-5)
    for library in ("timm", "torchvision"):
        assert found["mobilenetv2_cut", library] == ("symmetric", 1e-5)
    assert found["mobilenetv3_cut", "timm"] == ("symmetric", 1e-5)
    assert found["tf_mobilenetv3_cut", "timm"] == ("same", 1e-3)
    assert found["mobilenetv3_cut", "torchvision"] == ("symmetric", 1e-3)


@pytest.mark.parametrize("name", CUT)
def test_names_and_layouts_invert(name):
    origin = source(name)[0]
    family = families.of(name)
    shapes = target_shapes(name, Recipe(2, 3, encoders.norm(name), None, "tile"))
    for torch_name, array in origin.arrays.items():
        if rename.UNUSED.fullmatch(torch_name):
            continue
        path = family.flax_path(torch_name)
        ours = family.to_flax_layout(array, path, shapes.get(path))
        assert family.torch_name(path) == torch_name
        np.testing.assert_array_equal(family.to_torch_layout(ours, path), array)
        assert family.of_head(torch_name) or ours.shape == shapes[path]


def test_old_names_of_densenet_are_read():
    """`norm.1` for `norm1`, as torchvision's files have it; counters may lack."""
    state = network("densenetcut").state_dict()
    old = {}
    for name, value in state.items():
        if "num_batches" not in name:
            for layer in ("norm1", "norm2", "conv1", "conv2"):
                name = name.replace(f".{layer}.", f".{layer[:-1]}.{layer[-1]}.")
            old[name] = value
    assert "features.denseblock1.denselayer2.conv.1.weight" in old
    found, library = twins.source("densenetcut", old)
    assert library == "torchvision"
    wanted = {name: v for name, v in source("densenetcut")[0].arrays.items() if name in state}
    assert found.arrays.keys() == {name for name in wanted if "num_batches" not in name}
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(array, wanted[name])


def test_names_of_convnexts_authors_are_read_as_timm_reads_them():
    from timm.models.convnext import checkpoint_filter_fn

    ours = source("convnext_cut")[0].arrays
    layers = {"conv_dw": "dwconv", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}
    theirs = {}
    for name, array in ours.items():
        new = name.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".")
        new = new.replace("head.norm", "norm").replace("head.fc", "head")
        for layer, other in layers.items():
            new = new.replace(layer, other)
        if ".downsample." in new:
            new = new.replace("stages.", "downsample_layers.").replace(".downsample", "")
        theirs[new] = array
    found, library = twins.source("convnext_cut", theirs)
    assert library == "meta"
    state = {name: torch.tensor(array) for name, array in theirs.items()}
    expected = checkpoint_filter_fn(state, network("convnext_cut"))
    assert found.arrays.keys() == expected.keys() == ours.keys()
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(array, expected[name].numpy().reshape(array.shape))


@pytest.mark.parametrize("family", ["convnext", "densenet", "mobilenetv2", "mobilenetv3"])
def test_every_network_of_timms_is_listed_or_left_out_with_a_reason(family):
    import timm

    listed = {model for row in names.supported() for model in row.models}
    module = {"mobilenetv2": "efficientnet"}.get(family, family)
    of_timm = {model for model in timm.list_models(module=module) if family in model}
    assert of_timm
    assert {model for model in of_timm if names.left_out(model) is None} <= listed
    assert not {model for model in of_timm & listed if names.left_out(model)}


# ------------------------------------------------------------------ in 3D

PLANE, DEPTH = (32, 32), 32  # slices: so that even the coarsest feature has one


def deep_recipe(architecture, mode, **options):
    norm = encoders.norm(architecture)
    statistics = "reestimate" if norm == "batch" and mode == "repeat" else "carry"
    return Recipe(3, 3, norm, mode, "tile", statistics=statistics, **options)


def run(architecture, arrays, x, **settings):
    origin = source(architecture)[0]
    conventions = {"padding": origin.name.padding, "eps": origin.name.eps, "ops_mode": "lax"}
    norm = {"norm": encoders.norm(architecture)}
    return forward.features(architecture, arrays, x, **norm | conventions | settings)


def errors(deep, flat):
    pairs = zip(deep, flat, strict=True)
    return [forward.relative_error(d, np.broadcast_to(f[:, None], d.shape)) for d, f in pairs]


# MobileNets' blocks are EfficientNet's, which have their own tests of these laws.
@pytest.mark.parametrize("architecture", [slow(CUT[0]), CUT[1], *map(slow, CUT[2:])])
def test_depth_constant_volumes_equal_2d_in_every_mode_that_promises_it(architecture, rng):
    image = rng.normal(size=(1, *PLANE, 3)).astype(np.float32)
    volume = np.repeat(image[:, None], DEPTH, axis=1)
    origin, taps = source(architecture)[0], {"depth_kernels": 3}
    flat = run(architecture, plain(origin)[0], image)
    for mode in inflate.INFLATE:
        options = {} if mode == "acs" else taps
        recipe = deep_recipe(architecture, mode, **options)
        arrays = convert(origin, recipe).arrays
        if mode in ("mean", "center", "gaussian"):
            deep = run(architecture, arrays, volume, depth_padding="edge", **options)
            assert max(errors(deep, flat)) < 2e-5
        summed = sum_over_depth(arrays)
        for path, kernel in plain(origin)[0].items():
            if path in summed and kernel.ndim == 4 and kernel.shape[0] > 1:
                factor = {"repeat": 3.0, "sqrt": 3**0.5}.get(mode, 1.0)
                if mode != "acs":
                    np.testing.assert_allclose(summed[path], factor * kernel, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # that poolings look at one slice, VGG says in `test_residual.py`
@pytest.mark.parametrize("architecture", ["convnext_cut", "densenetcut"])
def test_center_is_2d_slice_by_slice_where_depth_is_not_strided(architecture, rng):
    volume = rng.normal(size=(1, 3, *PLANE, 3)).astype(np.float32)
    origin, taps = source(architecture)[0], {"depth_kernels": 3}
    arrays = convert(origin, deep_recipe(architecture, "center", **taps)).arrays
    deep = run(architecture, arrays, volume, depth_strides=1, **taps)
    flat = run(architecture, plain(origin)[0], volume[0])
    for feature, slices in zip(deep, flat, strict=True):
        assert forward.relative_error(feature[0], slices) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CUT)
def test_stem_policies_hold(architecture, rng):
    """Grey input in one channel gives what it gives three."""
    grey = rng.normal(size=(1, *PLANE, 1)).astype(np.float32)
    origin = source(architecture)[0]
    norm = encoders.norm(architecture)
    one = convert(origin, Recipe(2, 1, norm, None, "sum")).arrays
    found = run(architecture, one, grey)
    three = run(architecture, plain(origin)[0], np.repeat(grey, 3, -1))
    for a, b in zip(found, three, strict=True):
        assert forward.relative_error(a, b) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["convnext_cut", "densenetcut"])
def test_a_3d_file_is_certified(architecture, monkeypatch):
    """With a stem that leaves every fourth slice out, the last one among them, or half of them."""
    monkeypatch.setattr(forward, "PLANE", 64)
    origin = source(architecture)[0]
    taps = {"convnext_cut": (3, 3, 1, 1, 1), "densenetcut": (1, 3, 3, 1, 1)}[architecture]
    recipe = deep_recipe(architecture, "mean", depth_kernels=taps)
    converted = convert(origin, recipe)
    record = making.record(origin, recipe, converted)
    made = certificate.measure(Weights(converted.arrays, record, None), origin)
    assert not made["problems"]
    assert [s["reduction"] for s in made["volume"]["stages"]] == [
        feature.reduction for feature in encoders.feature_info(architecture)
    ]
    promises = made["volume"]["promises"]
    assert promises["edge"]["where"] == "everywhere" and promises["zero"]["where"] == "inside"
    inside = [stage["slices"]["inside"] for stage in made["volume"]["stages"]]
    assert inside[0] == {"convnext_cut": 0, "densenetcut": 6}[architecture]


# ------------------------------------------------------------------ the norm that stays


def test_layer_norm_is_recorded_and_no_other_norm_is_made_of_it():
    assert encoders.norm("convnext_tiny") in FIXED
    origin = source("convnext_cut")[0]
    recipe = deep_recipe("convnext_cut", "mean")
    record = making.record(origin, recipe, convert(origin, recipe))
    assert (record["norm"], record["statistics"]) == ("layer", "none")
    assert certificate.recipe_of(Weights({}, record, None)).statistics == "carry"
    for name, norm in (("convnext_cut", "batch"), ("densenetcut", "layer")):
        todo = by_hand(name, Recipe(2, 3, norm, None, "tile"), "x")
        with pytest.raises(WeightsError, match="config.model.norm"):
            todo.check_recipe()


def test_layer_norm_stays_whatever_norm_the_layers_around_it_have():
    shapes = [
        target_shapes("convnext_cut", Recipe(2, 3, n, None, "tile")) for n in ("layer", "group")
    ]
    assert shapes[0] == shapes[1] and not any(p.startswith("batch_stats") for p in shapes[0])
    spec = encoders.EncoderSpec("convnext_tiny", norm="frozen")
    assert (spec.own_norm, spec.fresh_norm) == ("layer", "batch")
    assert encoders.EncoderSpec("densenet121", norm="frozen").own_norm == "frozen"
