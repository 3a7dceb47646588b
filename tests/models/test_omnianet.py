"""Omnia-Net: golden parameter counts, its twin in PyTorch, sizes, volumes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import models
from crossdim_jax.errors import ConfigError
from crossdim_jax.weights.paths import flatten, unflatten
from tests.models import b0
from tests.models.test_efficientnet import count


def abstract(shape, **kwargs):
    model = models.build("omnianet", ops="lax", **kwargs)
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros(shape)))


def drawn(tree, rng):
    """Flax path -> array: unit variance through a ReLU; scales and biases off 1 and 0."""
    flat = {}
    for path, like in flatten(tree).items():
        value = rng.normal(size=like.shape).astype(np.float32)
        if path.endswith("kernel"):
            flat[path] = value * np.float32(np.sqrt(2 / np.prod(like.shape[:-1])))
        else:
            flat[path] = np.float32(0.1) * value + np.float32(path.endswith("/scale"))
    return flat


def check_twin(model, twin, image, rng, *, limit=1e-4, gradient=True):
    """Value and gradient of a network are those of its twin in PyTorch, in train mode.

    In float64, as the kinks of a ReLU make float32 gradients differ by more than a rounding error.
    """
    torch = pytest.importorskip("torch", reason="the twin is written in PyTorch (extra port)")
    from benchmarks import peer

    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(image))["params"]
    flat = drawn(tree, rng)
    pull = rng.normal(size=(*image.shape[:-1], model.out_channels))
    model = model.clone(dtype="float64")

    def total(tree):
        logits, _ = model.apply({"params": tree}, image, train=True, mutable=["batch_stats"])
        return jnp.sum(logits * pull), logits

    def value(tree):
        return {}, total(tree)[1]

    with jax.enable_x64(True):
        tree = unflatten({path: jnp.asarray(v, jnp.float64) for path, v in flat.items()})
        gradients, logits = jax.jit(jax.grad(total, has_aux=True) if gradient else value)(tree)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its threads spin, which costs all tests that run beside this one
    try:
        peer.load(twin, flat)
        twin = twin.double()
        theirs = twin(torch.from_numpy(np.moveaxis(image, -1, 1).astype(np.float64)))
        if gradient:
            (theirs * torch.from_numpy(np.moveaxis(pull, -1, 1).copy())).sum().backward()
    finally:
        torch.set_num_threads(threads)
    expected = {"logits": np.moveaxis(theirs.detach().numpy(), 1, -1)}
    expected |= peer.gradients(twin, flat) if gradient else {}
    found = {"logits": logits} | flatten(gradients)
    assert found.keys() == expected.keys()
    floor = 1e-4 * max(map(np.linalg.norm, expected.values()))  # some gradients vanish
    for path, value in expected.items():
        error = np.linalg.norm(np.asarray(found[path]) - value)
        assert error < limit * max(np.linalg.norm(value), floor), path


@pytest.mark.parametrize(
    ("encoder", "classes", "parameters"),
    [("efficientnet_b0", 4, 5_845_968), ("efficientnet_b4", 5, 19_427_965)],
)
def test_golden_parameter_count(encoder, classes, parameters):
    logits, tree = abstract((2, 64, 96, 1), encoder=encoder, out_channels=classes)
    assert count(tree["params"]) == parameters
    assert logits.shape == (2, 64, 96, classes)


@b0.SHORT_AND_WHOLE
@pytest.mark.parametrize("transposed", [False, True])
def test_equals_its_twin_in_pytorch_in_value_and_gradient(rng, b0_length, transposed):
    """And without full-resolution block, as DS-Net has it."""
    pytest.importorskip("torch", reason="the twin is written in PyTorch (extra port)")
    from benchmarks import omnia_peer

    options = {"upsample": "transposed", "stem_width": 0} if transposed else {}
    model = models.build("omnianet", drop_path_rate=0.0, ops="fast", **options)
    twin = omnia_peer.OmniaNet(transposed=transposed, stem_width=0 if transposed else 16)
    check_twin(model, twin, rng.normal(size=(4, 32, 64, 1)).astype(np.float32), rng)


def test_volumes_pass_through_the_same_code():
    logits, _ = abstract((1, 32, 32, 64, 2), norm="instance")
    assert logits.shape == (1, 32, 32, 64, 4)


def test_sizes_that_do_not_fit_are_refused_with_one_that_does():
    with pytest.raises(ValueError, match=r"multiples of 32.*\(64, 96\)"):
        abstract((1, 40, 96, 1))
    with pytest.raises(ValueError, match=r"multiples of 32.*\(64, 32\)"):
        models.build("omnianet").check_size((33, 32))


def test_unknown_names_list_the_known_ones():
    wrong = {
        "variant": ("draft", "paper, released"),
        "encoder": ("resnet", "efficientnet_b0"),
        "norm": ("layer", "batch, instance, group"),
        "padding": ("valid", "same, symmetric"),
        "upsample": ("bilinear", "transposed, nearest"),
        "activation": ("tanh", "silu, relu"),
        "ops": ("quick", "auto, lax, fast"),
        "width": (3, "width"),
    }
    for field, (value, known) in wrong.items():
        with pytest.raises(ConfigError, match=known):
            models.build("omnianet", **{field: value})


def test_only_the_encoders_convention_differs_in_the_released_code():
    paper, released = (models.build("omnianet", variant=v) for v in ("paper", "released"))
    spec = dataclasses.replace(paper.encoder, padding="symmetric", eps=1e-5, drop_path_rate=0.4)
    assert released == paper.clone(encoder=spec)
