"""Files in the names of every library become the same encoder, with that library's conventions."""

import functools

import numpy as np
import pytest
from safetensors.numpy import save_file

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.weights.recipe import Recipe
from tests.weight_port import tiny
from weight_port import families, forward, recognise, resemblance, source
from weight_port.convert import convert
from weight_port.families import efficientnet as family
from weight_port.names import Name

TINY = Name("efficientnet_tiny", "efficientnet_tiny", "efficientnet_tiny", "same", 1e-3)
SLOW = pytest.mark.slow
SCHEMES = {scheme.name: scheme for scheme in family.SCHEMES}
FLAT = Recipe(2, 3, "batch", None, "tile")


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    with tiny.registered():
        monkeypatch.setattr(source, "parse_name", lambda name: TINY)
        yield


def from_torch(scheme, target, array):
    """The inverse of a scheme's layout, found by trying: every layout is a transposition."""
    if scheme.to_torch(target, array) is array:
        return array
    orders = {4: [(2, 3, 1, 0), (2, 3, 0, 1)], 2: [(1, 0)]}.get(array.ndim, [(0,)])
    made = (array.transpose(order) for order in orders)
    return next(a for a in made if np.array_equal(scheme.to_torch(target, a), array))


def named(scheme, prefix=""):
    """The tiny network in a scheme's names."""
    tensors, names = tiny.source().arrays, SCHEMES[scheme].names("efficientnet_tiny")
    return {
        f"{prefix}{name}": from_torch(SCHEMES[scheme], target, tensors[target])
        for name, target in names.items()
        if target in tensors
    }


def found(arrays, **options):
    return recognise.recognise(arrays, TINY, file="x", **options)


@pytest.mark.parametrize("prefix", ["", "model.encoder."])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_recognised_and_undone(scheme, prefix):
    made = found(named(scheme, prefix))
    assert (made.place.scheme.name, made.place.prefix, made.others) == (scheme, prefix, ())
    expected = tiny.source().arrays
    assert made.arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(made.arrays[name], array)


# A file's names of one block, as the libraries' sources and released files have them.
GOLDEN = {
    "efficientnet-pytorch": [
        *("_conv_stem.weight", "_bn0.running_mean", "_blocks.2._expand_conv.weight"),
        *("_blocks.2._bn0.weight", "_blocks.2._depthwise_conv.weight", "_blocks.2._bn1.bias"),
        *("_blocks.2._se_reduce.bias", "_blocks.2._se_expand.weight"),
        *("_blocks.2._project_conv.weight", "_blocks.2._bn2.running_var", "_conv_head.weight"),
        *("_bn1.weight", "_fc.bias"),
    ],
    "monai": ["_blocks.1.2._expand_conv.weight", "_blocks.0.0._depthwise_conv.weight"],
    "huggingface": [
        *("embeddings.convolution.weight", "embeddings.batchnorm.running_var"),
        *(
            "encoder.blocks.2.expansion.expand_conv.weight",
            "encoder.blocks.2.expansion.expand_bn.bias",
        ),
        "encoder.blocks.2.depthwise_conv.depthwise_conv.weight",
        "encoder.blocks.2.depthwise_conv.depthwise_norm.running_mean",
        *("encoder.blocks.2.squeeze_excite.reduce.weight", "encoder.top_bn.weight"),
        *("encoder.blocks.2.projection.project_bn.running_var", "classifier.bias"),
    ],
    "keras": [
        *("stem_conv.kernel", "stem_bn.gamma", "block1a_dwconv.kernel", "block1a_bn.beta"),
        *("block2b_expand_conv.kernel", "block2b_expand_bn.moving_mean", "block2b_se_reduce.bias"),
        *("block2b_project_bn.moving_variance", "top_conv.kernel", "predictions.bias"),
    ],
    "keras-numbers": ["conv2d.kernel", "depthwise_conv2d_15.kernel", "batch_normalization_48.beta"],
}


@pytest.mark.parametrize("scheme", GOLDEN)
def test_names_are_those_of_the_libraries(scheme):
    assert set(GOLDEN[scheme]) <= SCHEMES[scheme].names("efficientnet_b0").keys()


@pytest.mark.parametrize("model", ["efficientnet_b0", "efficientnet_b5", "efficientnet_v2_s"])
def test_torchvision_has_these_names(model):
    torchvision = pytest.importorskip("torchvision")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        network = getattr(torchvision.models, model)()
    expected = {name for name in network.state_dict() if "num_batches_tracked" not in name}
    ours = model.replace("_v2", "v2")
    assert SCHEMES["torchvision"].names(ours).keys() == expected
    eps = {m.eps for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    padding, expected_eps = SCHEMES["torchvision"].convention(ours)
    assert eps == {expected_eps} and padding == "symmetric"


ONE_A_FAMILY = {  # ours -> torchvision's name, and whose names its tensors have
    "resnet50": ("resnet50", "timm"),
    "regnety_004": ("regnet_y_400mf", "torchvision"),
    "vgg11_bn": ("vgg11_bn", "torchvision"),
    "convnext_tiny": ("convnext_tiny", "torchvision"),
    "densenet121": ("densenet121", "timm"),
    "mobilenetv2_100": ("mobilenet_v2", "torchvision"),
    "mobilenetv3_large_100": ("mobilenet_v3_large", "torchvision"),
}


def tensors_of(network):
    """Names of a network's tensors, without the counters of its norms."""
    return {name for name in network.state_dict() if "num_batches_tracked" not in name}


@pytest.mark.parametrize("ours", ONE_A_FAMILY)
def test_other_families_have_torchvisions_names(ours):
    torchvision = pytest.importorskip("torchvision")
    torch = pytest.importorskip("torch")
    theirs, scheme = ONE_A_FAMILY[ours]
    # RegNet's widths are computed with tensors.
    with torch.device("cpu" if ours.startswith("regnet") else "meta"):
        network = getattr(torchvision.models, theirs)()
    chosen = recognise.known(ours)[scheme]
    assert chosen.names(ours).keys() == tensors_of(network)
    eps = {m.eps for m in network.modules() if hasattr(m, "eps")}
    assert eps == {chosen.convention(ours)[1]}


@pytest.mark.parametrize(
    "ours",
    [
        name if name in {"efficientnet_b0", *ONE_A_FAMILY} else pytest.param(name, marks=SLOW)
        for name in encoders.ENCODERS
        if not name.endswith("_keras")
    ],
)
def test_timms_scheme_has_all_tensors_of_timms_networks(ours):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    model = families.of(ours).models(ours)[0]
    with torch.device("meta"):
        network = timm.create_model(model)
    assert recognise.known(ours)["timm"].names(ours).keys() == tensors_of(network)


@functools.cache
def torchvision_network(eps):
    """torchvision's network of the tiny one's blocks, whose statistics fit nothing."""
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    efficientnet = torchvision.models.efficientnet
    settings, channels = [], 16
    for stage in tiny.STAGES:
        settings.append(
            efficientnet.MBConvConfig(
                *(stage.expansion, stage.window, stage.stride, channels, stage.channels),
                *(stage.repeats, 1.0, 1.0),
            )
        )
        channels = stage.channels
    network = efficientnet.EfficientNet(
        settings,
        dropout=0.0,
        num_classes=7,
        norm_layer=functools.partial(torch.nn.BatchNorm2d, eps=eps),
        last_channel=1280,
    )
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5, generator=generator)
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
    return network.eval()


@pytest.mark.parametrize("sequence", [False, True])
def test_features_and_logits_are_torchvisions(sequence, tmp_path, rng):
    """Symmetric padding with eps 1e-3: the convention of its B5 to B7 and V2, on an odd size."""
    torch = pytest.importorskip("torch")
    network = torchvision_network(1e-3)
    whole = torch.nn.Sequential(*network.children()) if sequence else network
    state = {f"backbone.{name}": value for name, value in whole.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "x.ckpt")
    origin = source.from_file(tmp_path / "x.ckpt", "efficientnet_tiny")
    assert (origin.name.padding, origin.name.eps) == ("symmetric", 1e-3)
    assert origin.origin["scheme"] == "torchvision" and origin.origin["prefix"] == "backbone."
    arrays = convert(origin, FLAT).arrays
    image = rng.normal(size=(1, 71, 69, 3)).astype(np.float32)
    kept = []
    hooks = [m.register_forward_hook(lambda *a: kept.append(a[2])) for m in network.features]
    with torch.no_grad():
        expected = network(torch.tensor(np.moveaxis(image, -1, 1).copy())).numpy()
    for hook in hooks:
        hook.remove()
    features = forward.features(
        "efficientnet_tiny", arrays, image, norm="batch", padding="symmetric", eps=1e-3
    )
    theirs = [np.moveaxis(kept[i].numpy(), 1, -1) for i in (0, 2, 3, 4, 5)]
    errors = [forward.relative_error(a, b) for a, b in zip(features, theirs, strict=True)]
    logits = family.logits("efficientnet_tiny", arrays, features[-1], eps=1e-3)
    assert max(*errors, forward.relative_error(np.asarray(logits), expected)) < 1e-5


def test_what_stands_beside_the_network_is_not_used_and_not_unknown():
    beside = {"decoder.conv.weight": np.zeros(3), "model.fc.weight": np.zeros(3)}
    made = found(named("timm", "model.") | beside)
    assert set(made.others) == beside.keys()
    strange = {"model.blocks.9.0.conv_pw.weight": np.zeros((1, 1, 1, 1))}
    assert "blocks.9.0.conv_pw.weight" in found(named("timm", "model.") | strange).arrays
    head = {"classifier.weight": np.ones((5, 7))}  # beside the body, as Hugging Face has it
    made = found(named("huggingface", "efficientnet.") | head)
    assert made.arrays["classifier.weight"].shape == (5, 7) and not made.others


def test_moving_averages_are_an_option():
    twice = named("timm", "model.") | {
        name: array + 1 for name, array in named("timm", "model_ema.module.").items()
    }
    plain, averaged = found(twice), found(twice, ema=True)
    assert plain.place.prefix == "model." and averaged.place.prefix == "model_ema.module."
    difference = averaged.arrays["conv_stem.weight"] - plain.arrays["conv_stem.weight"]
    np.testing.assert_allclose(difference, 1, rtol=1e-5)


def test_a_network_that_is_there_twice_is_asked_for():
    twice = named("timm", "encoder_q.") | named("timm", "encoder_k.")
    with pytest.raises(WeightsError, match=r"under 'encoder_k.', 'encoder_q.'; choose one with"):
        found(twice)
    assert found(twice, prefix="encoder_k.").place.prefix == "encoder_k."


def test_a_scheme_can_be_forced():
    assert found(named("monai"), scheme="timm") is None
    with pytest.raises(WeightsError, match="scheme='pytorch' is unknown; known: timm, eff"):
        found({}, scheme="pytorch")


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_stem_of_one_channel_is_a_source(n, tmp_path, rng):
    """Exact on equal channels, with any policy that carries over."""
    arrays = named("monai")
    arrays["_conv_stem.weight"] = np.ascontiguousarray(arrays["_conv_stem.weight"][:, :1])
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, tmp_path / "x.safetensors")
    origin = source.from_file(tmp_path / "x.safetensors", "efficientnet_tiny")
    assert origin.origin["source_channels"] == 1
    stems = [
        convert(origin, Recipe(2, n, "batch", None, stem)).arrays["params/encoder/conv_stem/kernel"]
        for stem in ("tile", "gray")
    ]
    for stem in stems:
        assert stem.shape[2] == n
        np.testing.assert_allclose(
            stem.sum(2), arrays["_conv_stem.weight"][:, 0].transpose(1, 2, 0), rtol=1e-5
        )


def test_what_fits_nothing_is_told_what_it_resembles():
    arrays = named("efficientnet-pytorch", "net.")
    arrays["net._blocks.1._bn0.bias"] = np.zeros(5, np.float32)
    del arrays["net._blocks.2._expand_conv.weight"]
    told = resemblance.resemblance(arrays)
    assert "efficientnet_tiny in EfficientNet-PyTorch's names, under 'net.'" in told
    assert "First differences of 2:\n  net._blocks.1._bn0.bias: found (5,), expected (32,)" in told
    assert "net._blocks.2._expand_conv.weight: missing" in told
    assert "of none of the networks" in resemblance.resemblance({"a.weight": np.zeros(3)})
