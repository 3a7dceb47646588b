"""Ported ResNet, RegNet and VGG are timm's, torchvision's and Keras' networks, in 2D and 3D."""

import functools

import jax
import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.weights.recipe import Recipe
from tests import cut_families
from tests.weight_port.conftest import random_timm
from weight_port import families, forward, names, rename
from weight_port.convert import convert
from weight_port.recognise import recognise
from weight_port.source import Source, parse_name

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
ORIGIN = {"source": "file", "id": "x", "url": None, "file": "x.safetensors"}
PLANE = (70, 75)  # even and odd sizes on the way down


@pytest.fixture(scope="module", autouse=True)
def _cut():
    with cut_families.cut():
        yield
    network.cache_clear()


@functools.cache
def network(name, **options):
    """A random network of timm's; Keras' form, which timm has not, is made of one."""
    keras = name.endswith("_keras")
    of_timm = name.removesuffix("_keras")
    small = cut_families.TIMM.get(of_timm, cut_families.TIMM["resnet18"])
    model = random_timm.__wrapped__(of_timm, **small | options)
    if keras:
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, (1, 1)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                bias = np.random.default_rng(2).normal(0, 0.3, module.out_channels)
                module.bias = torch.nn.Parameter(torch.tensor(bias, dtype=torch.float32))
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 1.001e-5
    return model


def tensors(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def source(name):
    return Source(parse_name(name), tensors(network(name)), ORIGIN)


def renamed(arrays, name):
    """The tensors by timm's names, and how they were recognised."""
    found = recognise(arrays, parse_name(name), file="x")
    assert not found.others
    return found.arrays, found.place


def torch_outputs(model, modules, image):
    kept = []
    hooks = [m.register_forward_hook(lambda _, __, out: kept.append(out.clone())) for m in modules]
    with torch.no_grad():
        logits = model(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    for hook in hooks:
        hook.remove()
    return [*(np.moveaxis(feature.numpy(), 1, -1) for feature in kept), logits.numpy()]


def our_outputs(origin, image):
    """Features, and logits where the source has a head."""
    name = origin.name
    norm = encoders.norm(name.architecture)
    arrays = convert(origin, Recipe(2, 3, norm, None, "tile")).arrays
    settings = {"norm": norm, "padding": name.padding, "eps": name.eps, "ops_mode": "lax"}
    found = forward.features(name.architecture, arrays, image, **settings)
    with jax.default_matmul_precision("highest"):
        logits = families.of(name.architecture).logits
        return [*found, np.asarray(logits(name.architecture, arrays, found[-1], eps=name.eps))]


def check(found, expected, bound=1e-5):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert forward.relative_error(ours, theirs) < bound


@pytest.mark.parametrize(
    "name",
    [slow(name) if name == "vgg11_bn" else name for name in (*cut_families.TIMM, "resnet50_keras")],
)
def test_features_and_logits_are_those_of_the_source(name, rng):
    image = rng.normal(size=(2, *PLANE, 3)).astype(np.float32)
    model = network(name)
    modules = families.of(name).feature_modules(model)
    found = our_outputs(source(name), image)
    check(found, torch_outputs(model, modules, image))
    info = encoders.feature_info(name)
    assert [f.shape[-1] for f in found[:-1]] == [feature.channels for feature in info]


# ------------------------------------------------------------------ other libraries' names


def as_keras(arrays):
    """The tensors as keras.applications names them and lays them out."""
    leaves = {"running_mean": "moving_mean", "running_var": "moving_variance"}
    found = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        norm = "bn" in module or module.endswith("downsample.1")
        if leaf == "num_batches_tracked":
            continue
        if module.startswith("layer"):
            stage, block, layer = module.removeprefix("layer").split(".", 2)
            number = "0" if "downsample" in layer else layer[-1]
            layer = f"conv{int(stage) + 1}_block{int(block) + 1}_{number}"
        else:
            layer = "predictions" if module == "fc" else "conv1"
        layer += "" if module == "fc" else "_bn" if norm else "_conv"
        own = {"weight": "gamma", "bias": "beta"} if norm else {"weight": "kernel"}
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        array = array.T if array.ndim == 2 else array
        found[f"{layer}.{(leaves | own).get(leaf, leaf)}"] = array
    return found


def as_children(arrays):
    """The tensors as RadImageNet's files name them: torchvision's modules by number."""
    order = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return {
        f"backbone.{order.index(name.split('.')[0])}.{name.split('.', 1)[1]}": array
        for name, array in arrays.items()
        if not name.startswith("fc.")
    }


@pytest.mark.parametrize(
    ("name", "called", "scheme", "prefix"),
    [
        ("resnet50_keras", as_keras, "keras", ""),
        ("resnet50_keras", as_children, "timm", "backbone."),
        ("resnet50", as_children, "timm", "backbone."),
    ],
)
def test_names_of_keras_and_radimagenet_lead_to_the_same_tensors(name, called, scheme, prefix):
    arrays = tensors(network(name))
    found, place = renamed(called(arrays), name)
    assert (place.scheme.name, place.prefix) == (scheme, prefix)
    parsed = parse_name(name)
    assert place.scheme.convention(name) == (parsed.padding, parsed.eps)
    counters = {n for n in arrays if rename.UNUSED.fullmatch(n)}
    left = counters if scheme == "keras" else {"fc.weight", "fc.bias"}
    assert arrays.keys() - found.keys() == left
    for key, array in found.items():
        np.testing.assert_array_equal(array, arrays[key])


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "wide_resnet50_2", "resnet18"])
def test_torchvisions_resnets_have_timms_names(name):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs, of_timm = getattr(torchvision.models, name)(), timm.create_model(name)
    shapes = ({k: v.shape for k, v in m.state_dict().items()} for m in (theirs, of_timm))
    assert next(shapes) == next(shapes)


def of_torchvision(name):
    """torchvision's own network, as small as timm's."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    if name == "regnety_002":
        own = {"depth": "depth", "w0": "w_0", "wa": "w_a", "wm": "w_m"}
        own |= {"group_size": "group_width", "se_ratio": "se_ratio"}
        numbers = {own[key]: value for key, value in cut_families.REGNET.items()}
        parameters = torchvision.models.regnet.BlockParams.from_init_params(**numbers)
        return torchvision.models.regnet.RegNet(parameters, num_classes=9)
    layers = [layer for c in cut_families.CHANNELS for layer in (c, "M")]
    body = torchvision.models.vgg.make_layers(layers, batch_norm=name.endswith("_bn"))
    with torch.device("meta"):  # its head is large, and is exchanged
        model = torchvision.models.vgg.VGG(body, init_weights=False)
    for index, shape in {0: (cut_families.CHANNELS[-1] * 49, 64), 3: (64, 4096)}.items():
        model.classifier[index] = torch.nn.Linear(*shape)
    model.classifier[6] = torch.nn.Linear(4096, 9)
    return model


@pytest.mark.parametrize("name", ["regnety_002", "vgg11", "vgg11_bn"])
def test_torchvisions_networks_are_timms_once_their_tensors_are_renamed(name, rng):
    theirs = of_torchvision(name)
    image = torch.tensor(rng.normal(size=(2, 3, *PLANE)), dtype=torch.float32)
    with torch.no_grad():
        theirs.train()(image)  # statistics that fit
        expected = theirs.eval()(image)
    arrays, place = renamed(tensors(theirs), name)
    assert place.scheme.name == "torchvision"
    ours = timm.create_model(name, num_classes=9, **cut_families.TIMM[name]).eval()
    ours.load_state_dict({key: torch.tensor(array) for key, array in arrays.items()})
    with torch.no_grad():
        torch.testing.assert_close(ours(image), expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ along depth


def outputs(name, recipe, x, **settings):
    eps, padding = source(name).name.eps, source(name).name.padding
    if recipe.ndim == 3:
        settings |= {"depth_kernels": recipe.depth_kernels, "factorised": recipe.factorised}
    shared = {"norm": recipe.norm, "padding": padding, "eps": eps, "ops_mode": "lax"}
    arrays = convert(source(name), recipe).arrays
    return forward.features(name, arrays, x, **shared, **settings)


def recipes(name, mode, **deep):
    """Of the 3D encoder and of the 2D one it comes from."""
    norm = deep.pop("norm", encoders.norm(name))
    return Recipe(3, 3, norm, mode, "tile", **deep), Recipe(2, 3, norm, None, "tile")


@pytest.mark.parametrize(
    ("name", "mode", "deep"),
    [
        ("resnext50_32x4d", "gaussian", {"factorised": True}),
        slow("resnet50_keras", "center", {"norm": "instance", "depth_kernels": (3, 1, 2, 3, 3)}),
        slow("regnety_002", "mean", {"norm": "group"}),
        slow("vgg11", "gaussian", {"depth_kernels": (3, 1, 3, 1, 3, 3, 1)}),
    ],
    ids=str,
)
def test_a_volume_that_is_constant_along_depth_gives_the_2d_features(name, mode, deep, rng):
    image = rng.normal(size=(1, 64, 96, 3)).astype(np.float32)
    recipe, flat = recipes(name, mode, **deep)
    found = outputs(name, recipe, np.repeat(image[:, None], 6, 1), depth_padding="edge")
    expected = outputs(name, flat, image)
    assert found[-1].shape[1] == 1
    pairs = zip(expected, found, strict=True)
    check(found, [np.broadcast_to(e[:, None], f.shape) for e, f in pairs], 2e-5)


@pytest.mark.parametrize("name", [slow("resnet18"), "vgg11_bn"])
def test_centred_kernels_and_no_stride_along_depth_are_the_2d_network_slice_by_slice(name, rng):
    """Poolings too look at one slice where depth is not strided."""
    volume = rng.normal(size=(1, 3, 64, 64, 3)).astype(np.float32)
    recipe, flat = recipes(name, "center")
    found = outputs(name, recipe, volume, depth_strides=1)
    expected = outputs(name, flat, volume[0])
    check([f[0] for f in found], expected, 2e-5)


def test_what_a_network_has_not_is_refused_by_name():
    with pytest.raises(WeightsError, match="'repeat' needs norms"):
        Recipe(3, 3, "none", "repeat", "tile")
    with pytest.raises(WeightsError, match="'resnet18' has no grouped convolution"):
        outputs("resnet18", Recipe(3, 3, "batch", "mean", "tile", factorised=True), None)
    from crossdim_jax.weights import norms

    with pytest.raises(WeightsError, match="vgg11 has no norms: found norm 'batch'"):
        norms.check_source("batch", "vgg11", "carry")
    with pytest.raises(WeightsError, match="vgg11_bn has norms over voxels: found norm 'none'"):
        norms.check_source("none", "vgg11_bn", "carry")


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize("module", ["resnet", "regnet", "vgg"])
def test_every_network_of_timms_module_is_listed_or_left_out_with_a_reason(module):
    listed = {model for row in names.supported() for model in row.models}
    of_timm = set(timm.list_models(module=module))
    assert not {model for model in of_timm - listed if names.left_out(model) is None}
    assert not {model for model in of_timm & listed if names.left_out(model)}
