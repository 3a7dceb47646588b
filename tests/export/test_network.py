"""ONNX Runtime gives what JAX gives: every operation by itself, then networks of every kind."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

from crossdim_jax import models
from crossdim_jax.export import network
from crossdim_jax.export.graph import NotExpressible
from tests.weight_port import tiny

IMAGE = (4, 6, 8, 3)  # (*spatial, c)


def of_function(function):
    """A model without parameters, as `as_onnx` takes it."""
    model = types.SimpleNamespace(apply=lambda variables, image, train=False: function(image))
    model.clone = lambda **_: model
    return model


def run(model, image):
    """Output of ONNX Runtime, channels last, for an image of JAX's layout."""
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"image": np.ascontiguousarray(np.moveaxis(image, -1, 1))})
    return np.moveaxis(found, 1, -1)


def conv(x, spatial, **options):
    kernel = jnp.asarray(np.random.default_rng(1).standard_normal((*spatial, 1, 6)), x.dtype)
    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, ("NDHWC", "DHWIO", "NDHWC"))
    options = {"window_strides": (1, 2, 1), "padding": ((1, 0), (0, 2), (1, 1))} | options
    return lax.conv_general_dilated(
        x, kernel, dimension_numbers=numbers, feature_group_count=3, **options
    )


def pool(x, initial, operation, window=(1, 2, 3, 2, 1)):
    padding = ((0, 0), (0, 0), (1, 1), (0, 0), (0, 0))
    return lax.reduce_window(x, initial, operation, window, (1, 2, 2, 1, 1), padding)


def widths(low, high):
    return ((0, 0), (low, high), (high, low), (0, 0), (0, 0))


def grouped(x):
    parts = x.reshape(x.shape[0], 4, 3, 2, 8, 3).transpose(0, 3, 1, 2, 4, 5)
    return parts.reshape(x.shape[0], 8, 3, 8, 3) - parts.mean((1, 2), keepdims=True)[:, :, 0, :1]


def attention(x):
    flat = x.reshape(x.shape[0], -1, 3)
    weights = jax.nn.softmax(flat @ flat.swapaxes(1, 2) / 30, -1)
    return (weights @ flat).reshape(x.shape)


FUNCTIONS = {
    "a convolution": lambda x: conv(x, (2, 3, 3)),
    "a dilated convolution": lambda x: conv(x, (2, 3, 2), rhs_dilation=(1, 1, 2)),
    "a product": lambda x: jnp.einsum("bzyxc,co->bzyxo", x, jnp.arange(6.0).reshape(3, 2)),
    "products of voxels": attention,
    "paddings": lambda x: jnp.pad(jnp.pad(x, widths(2, 1), "reflect"), widths(0, 3), "edge"),
    "gaps": lambda x: lax.pad(x, 0.5, ((0, 0, 0), (2, -1, 2), (0, 0, 1), (0, 0, 0), (0, 0, 0))),
    "a slice": lambda x: jnp.flip(x[:, 1::2, :, 2:7], (2, 4)),
    "joined parts": lambda x: jnp.concatenate([*jnp.split(x, 2, 1), 2 * x[:, :1]], 1),
    "repeats": lambda x: jnp.repeat(x, 2, axis=2)[:, :, 1:-1] + jnp.ones((1, 1, 1, 1, 3)),
    "largest of windows": lambda x: pool(x, -jnp.inf, lax.max),
    "sums of windows": lambda x: pool(x, 0.0, lax.add),
    "groups": grouped,
    "a gate": lambda x: x * jax.nn.sigmoid(x.mean((1, 2, 3), keepdims=True)),
    "extremes": lambda x: x.max((1, 2), keepdims=True) - x.min(4, keepdims=True),
    "powers": lambda x: x**2 + x**3 + jnp.abs(x) ** 0.7 - jnp.sqrt(jnp.exp(x)) + jax.nn.softplus(x),
    "choices": lambda x: jnp.where((x > 0.3) & ~(x >= 1), x, jnp.float32(2)),
    **{
        name: getattr(jax.nn, name)
        for name in ("silu", "relu", "relu6", "hard_swish", "hard_sigmoid", "leaky_relu", "tanh")
    },
    "gelu": lambda x: jax.nn.gelu(x, approximate=False) + jax.nn.gelu(x, approximate=True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_gives_what_it_gives_in_jax(name, rng):
    image, function = rng.standard_normal((2, *IMAGE), np.float32), FUNCTIONS[name]
    model = network.as_onnx(of_function(function), {}, IMAGE[:-1], IMAGE[-1])
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    np.testing.assert_allclose(run(model, image), function(image), rtol=1e-4, atol=1e-5)


def test_a_sum_over_a_volume_keeps_the_digits_of_float32(rng):
    """Added up one after the other, hundreds of thousands of entries lose one or two of them."""
    image = rng.uniform(0.5, 1.5, (1, 97, 32, 64, 16)).astype(np.float32)
    function = of_function(lambda x: jnp.zeros_like(x) + x.sum((1, 2, 3), keepdims=True))
    found = run(network.as_onnx(function, {}, image.shape[1:-1], 16), image)[0, 0, 0, 0]
    np.testing.assert_allclose(found, image.astype(np.float64).sum((0, 1, 2, 3)), rtol=5e-7)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.cumsum(x, 1), "'cumsum'"),
        (lambda x: jnp.sort(x, 1), "'sort'"),
        (lambda x: lax.fori_loop(0, x.shape[1], lambda _, y: y * 2, x), "'scan'|'while'"),
        (lambda x: x.astype(jnp.bfloat16) * 2, "bfloat16"),
    ],
)
def test_what_has_no_form_is_refused_by_name(function, message):
    with pytest.raises(NotExpressible, match=message):
        network.as_onnx(of_function(function), {}, IMAGE[:-1], IMAGE[-1])


# Each value of each option at least once; the networks as their variants say otherwise.
NETWORKS = [
    (
        "dxnet",
        (8, 32, 32),
        {"depth_strides": (1, 1, 1, 2, 2, 2), "depth_padding": "reflect"}
        | {"factorised": True, "depth_kernels": 3},
    ),
]
MORE_NETWORKS = [
    ("omnianet", (32, 64), {"norm": "group", "variant": "released", "upsample": "transposed"}),
    ("omnianet", (32, 32), {}),
    ("omnianet", (32, 32), {"norm": "frozen", "activation": "silu", "stem_width": 0}),
    ("dxnet", (32, 32, 32), {"norm": "group"}),
    ("dxnet", (2, 32, 32), {"norm": "batch", "depth_strides": 1, "depth_padding": "edge"}),
    ("dsnet", (97, 32, 32), {}),
    ("dsnet", (128, 32, 32), {"variant": "released"}),
]
NETWORKS += [pytest.param(*row, marks=pytest.mark.slow) for row in MORE_NETWORKS]


def variables_of(model, image, rng):
    """Random numbers in the place of parameters, of a size that keeps the features near 1."""

    def fill(path, leaf):
        noise, name = rng.standard_normal(leaf.shape).astype(np.float32), path[-1].key
        if leaf.ndim > 1:
            return noise * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
        return {"scale": 1 + noise / 5, "var": 1 + np.abs(noise)}.get(name, noise / 5)

    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(image.shape)))
    return jax.tree_util.tree_map_with_path(fill, abstract)


@pytest.mark.parametrize(("name", "spatial", "options"), NETWORKS)
def test_a_network_gives_what_it_gives_in_jax(name, spatial, options, rng):
    image = rng.standard_normal((2, *spatial, 2), np.float32)
    with tiny.registered():
        widths = {} if name == "dsnet" else {"widths": (8,) * 5}
        model = models.build(name, encoder="efficientnet_tiny", out_channels=3, **widths, **options)
        variables = variables_of(model, image, rng)
        expected = jax.jit(model.apply)(variables, image)
        found = run(network.as_onnx(model, variables, spatial, 2), image)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_kernels_mixed_for_each_sample_take_one_at_a_time(rng):
    from crossdim_jax.models.conv import Conv

    class Mixed(Conv):
        ops: str = "auto"

        def __call__(self, x, train=False):
            return super().__call__(x, routing=jax.nn.sigmoid(x.mean((1, 2))))

    model, image = Mixed(4, experts=2), rng.standard_normal((1, 8, 6, 2), np.float32)
    variables = variables_of(model, image, rng)
    exported = network.as_onnx(model, variables, (8, 6), 2)
    assert exported.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    np.testing.assert_allclose(run(exported, image), model.apply(variables, image), atol=1e-5)
