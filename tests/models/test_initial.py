"""Initial parameters: the law of each, and what they do and do not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import models
from crossdim_jax.models import initial
from crossdim_jax.models.conv import Conv
from tests.toy import ToyNet

NETWORKS = {
    "dxnet": ((1, 32, 32, 32, 4), {}),
    "dsnet": ((1, 97, 32, 32, 2), {}),
    "omnianet": ((1, 32, 32, 1), {"norm": "batch"}),
    "dxnet factorised, mixed kernels": (
        (1, 32, 32, 32, 1),
        {"factorised": True, "encoder": "efficientnet_cc_b0_4e"},
    ),
}


def built(case, **changes):
    shape, settings = NETWORKS[case]
    settings = {"ops": "lax"} | settings | changes  # traced in half of the time
    return models.build(case.split()[0], out_channels=3, **settings), shape


def flat(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize("case", NETWORKS)
def test_names_shapes_and_types_are_those_of_the_network(case):
    model, shape = built(case)
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    expected = flat(jax.eval_shape(model.init, jax.random.key(0), image))
    found = flat(models.init(model, 0, shape))
    assert {n: (a.shape, a.dtype) for n, a in found.items()} == {
        n: (a.shape, a.dtype) for n, a in expected.items()
    }


@pytest.mark.parametrize("case", NETWORKS)
def test_kernels_are_normal_with_the_deviation_they_ask_for(case):
    """Every kernel as by the initialiser in Flax's own hands, in mean and deviation."""
    model, shape = built(case)
    found = flat(models.init(model, 0, shape))
    drawn = {name: np.asarray(a, np.float64) for name, a in found.items() if "kernel" in name}
    assert drawn
    for name, values in drawn.items():
        if values.size < 500:
            continue
        leading = 1 if model.encoder.name.endswith("4e") and values.ndim == 6 else 0
        fan_in = np.prod(values.shape[leading:-1])
        scale = np.var(values) * fan_in
        window = np.prod(values.shape[:-2])
        allowed = (1.0, 2.0, 3.0, window)  # see models.conv
        assert min(abs(scale / s - 1) for s in allowed) < 6 * np.sqrt(2 / values.size), name
        assert abs(values.mean()) < 6 * values.std() / np.sqrt(values.size), name


def test_norms_start_as_the_identity():
    model, shape = built("omnianet")
    found = flat(models.init(model, 0, shape))
    starts = {"scale": 1, "var": 1, "bias": 0, "mean": 0}
    checked = 0
    for name, array in found.items():
        if (last := name.split("/")[-1]) in starts:
            np.testing.assert_array_equal(array, starts[last], err_msg=name)
            checked += 1
    assert checked > 100


def test_an_array_depends_on_seed_and_path_alone():
    """The same decoder under another encoder, other inputs, and other ways to convolve."""
    model, shape = built("dxnet")
    one = flat(models.init(model, 3, shape))
    other, _ = built("dxnet", ops="fast", norm="group", encoder="efficientnet_lite0")
    two = flat(models.init(other, 3, (2, 64, 32, 32, 4)))
    alike = [n for n in one if "decoder" in n and one[n].shape == two[n].shape]
    assert len(alike) > 20
    for name in alike:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    kernels = [n for n in alike if n.endswith("kernel")]
    three = flat(models.init(model, 4, shape))
    assert all((one[n] != three[n]).any() for n in kernels)
    flattened = {n: np.asarray(one[n]).ravel()[:8].tobytes() for n in kernels}
    assert len(set(flattened.values())) == len(kernels)  # and no two arrays are alike


def test_known_values_stay():
    """A seed means the same numbers on every machine and in every version."""
    drawn = initial.variables(Conv(4, 3, use_bias=True), 7, (1, 8, 8, 2))["params"]
    expected = [0.058500431, -0.21488367, -0.081322625, 0.2766923]
    np.testing.assert_allclose(drawn["kernel"].ravel()[:4], expected, rtol=1e-6)
    np.testing.assert_array_equal(drawn["bias"], 0)


def test_a_network_with_other_initialisers_is_initialised_by_flax():
    image = jnp.zeros((1, 8, 6, 1))
    found = flat(models.init(ToyNet(norm=True), 5, image.shape))
    expected = flat(ToyNet(norm=True).init(jax.random.key(5), image))
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_nothing_is_compiled(caplog):
    with jax.log_compiles():
        models.init(*[built("omnianet")[0], 0, (1, 32, 32, 1)])
    compiled = [r for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    assert len(compiled) < 5
