"""A ported 2D encoder is timm's network: the same features on the same input."""

import jax
import numpy as np
import pytest

from crossdim_jax import params
from crossdim_jax.models import encoders
from weight_port.convert import Recipe, convert, target_shapes

torch = pytest.importorskip("torch")
pytest.importorskip("timm")


def timm_features(model, image):
    """Our five features, by hooks: the stem's activated output and stages 1, 2, 4 and 6."""
    kept = []
    modules = [model.bn1, *(model.blocks[stage] for stage in (1, 2, 4, 6))]
    hooks = [m.register_forward_hook(lambda _, __, out: kept.append(out)) for m in modules]
    with torch.no_grad():
        model.forward_features(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    for hook in hooks:
        hook.remove()
    return [feature.numpy().transpose(0, 2, 3, 1) for feature in kept]


def our_features(source, image, **attributes):
    """The encoder with the source's weights, merged as training merges them."""
    name = source.name
    settings = {"norm": "batch", "padding": name.padding, "eps": name.eps} | attributes
    encoder = encoders.build(name.architecture, **settings)
    recipe = Recipe(ndim=2, in_channels=3, norm="batch", inflate=None, stem="tile")
    shapes = target_shapes(name.architecture, recipe)
    abstract = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    weights = params.Weights(convert(source, recipe).arrays)
    merged, report = params.merge(params.unflatten(abstract), weights)
    assert not report.fresh and not report.unused and not report.outside
    variables = {collection: tree["encoder"] for collection, tree in merged.items()}
    # Unoptimised: compiling takes longer than one forward pass.
    apply = jax.jit(encoder.apply, compiler_options={"xla_backend_optimization_level": 0})
    with jax.default_matmul_precision("highest"):
        return [np.asarray(feature) for feature in apply(variables, image)]


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# All odd (65, 33, 17, ...) is where the two conventions agree; even is where they differ. 70 and 75
# meet both on the way down.
SIZES = {"b0": [(65, 97), (70, 75)], "b4": [(70, 75)]}


@pytest.mark.parametrize("family", ["tf_efficientnet", "efficientnet"])
@pytest.mark.parametrize(
    ("variant", "size"), [(v, s) for v, sizes in SIZES.items() for s in sizes], ids=str
)
def test_features_equal_timm(variant, size, family, timm_model, make_source, rng):
    name = f"{family}_{variant}"
    image = rng.normal(size=(2, *size, 3)).astype(np.float32)
    expected = timm_features(timm_model(name), image)
    found = our_features(make_source(name), image)
    assert len(found) == len(expected) == 5
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("wrong", [{"padding": "symmetric"}, {"eps": 1e-5}], ids=["padding", "eps"])
def test_the_other_convention_is_another_function(wrong, timm_model, make_source, rng):
    """What the parity test would see if the convention were not carried with the weights."""
    image = rng.normal(size=(1, 64, 64, 3)).astype(np.float32)
    expected = timm_features(timm_model("tf_efficientnet_b0"), image)[-1]
    found = our_features(make_source("tf_efficientnet_b0"), image, **wrong)[-1]
    assert relative_error(found, expected) > 1e-4
