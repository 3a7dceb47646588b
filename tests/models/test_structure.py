"""What the compiled network must not contain, whatever the machine and its load."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import flops
from crossdim_jax import losses, models, ops
from crossdim_jax.runtime import sharding
from tests.models import b0

BATCH_OF_ONE = (1, 64, 64, 64, 4)
SHARED = (1, 128, 32, 32, 4)  # four devices, and whole slices down to the coarsest level


def network(mode, encoder="efficientnet_b0"):
    return models.build("dxnet", encoder=encoder, drop_path_rate=0.0, ops=mode)


def loss(net, params, image, target):
    logits = net.apply({"params": params}, image, train=True)
    total, count = losses.dice_bce(logits, target)["loss"]
    return total / count


def arguments(shape, *encoder):
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    target = jax.ShapeDtypeStruct((*shape[:-1], 3), jnp.uint8)
    params = jax.eval_shape(network("lax", *encoder).init, jax.random.key(0), image)["params"]
    return params, image, target


@functools.cache
def gradient_program(length, mode, *encoder):
    """For the `b0_length` that the test is in."""
    function = jax.grad(functools.partial(loss, network(mode, *encoder)))
    return jax.make_jaxpr(function)(*arguments(BATCH_OF_ONE, *encoder))


def equations(jaxpr, times=1):
    """Every equation, those of inner programs too, and how often it runs."""
    for equation in jaxpr.eqns:
        yield equation, times
        inner = times * equation.params.get("length", 1)
        assert equation.primitive.name != "while", "a loop whose length is not known"
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            program = getattr(value, "jaxpr", value)
            if hasattr(program, "eqns"):
                yield from equations(program, inner)


def operations(equation):
    """Multiplications and additions of a matrix product or a convolution."""
    out = equation.outvars[0].aval.size
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * out * functools.reduce(lambda n, axis: n * shape[axis], contracted, 1)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * out * kernel.size // features
    return 0


@b0.SHORT_AND_WHOLE
@pytest.mark.parametrize("mode", ["fast", "unfolded"])
def test_products_are_no_more_than_the_networks_own(b0_length, mode):
    counted = sum(n * operations(e) for e, n in equations(gradient_program(b0_length, mode).jaxpr))
    analytic = flops.analytic_flops(network(mode), BATCH_OF_ONE, train=True)
    assert 0.4 * analytic < counted < 1.1 * analytic


@b0.SHORT_AND_WHOLE
@pytest.mark.parametrize(
    ("mode", "encoder"),
    [("fast", []), ("unfolded", []), ("fast", ["efficientnet_b0_g8_gn"])],
    ids=str,
)
def test_no_grouped_convolution_is_left_to_xla(b0_length, mode, encoder):
    """XLA turns the kernel gradient of one into a dense convolution that is masked afterwards."""
    convolutions = [
        e
        for e, _ in equations(gradient_program(b0_length, mode, *encoder).jaxpr)
        if e.primitive.name == "conv_general_dilated"
    ]
    assert convolutions
    groups = {
        (e.params["feature_group_count"], e.params["batch_group_count"]) for e in convolutions
    }
    assert groups == {(1, 1)}


@pytest.mark.slow
def test_xla_counts_no_more_than_the_analytic_number():
    """The compiled gradient as XLA counts, loops once; at 32^3, where compiling is cheaper."""
    shape = (1, 32, 32, 32, 4)
    function = jax.jit(jax.grad(functools.partial(loss, network("auto"))))
    counted = function.lower(*arguments(shape)).compile().cost_analysis()["flops"]
    assert counted < 1.1 * flops.analytic_flops(network("auto"), shape, train=True)


@pytest.mark.slow  # `tests/ops/test_sharded.py` says it of each operation
@b0.SHORT_AND_WHOLE
def test_a_volume_shared_along_depth_is_never_gathered(b0_length):
    mesh = sharding.make_mesh(1, 4)
    volumes, everywhere = sharding.batched(mesh), sharding.replicated(mesh)
    net = network(ops.choose("auto", backend="cpu", depth_shards=4))
    function = jax.jit(
        jax.value_and_grad(functools.partial(loss, net)),
        in_shardings=(everywhere, volumes, volumes),
        out_shardings=everywhere,
    )
    compiled = function.lower(*arguments(SHARED)).compile()
    found = collections.Counter(
        re.findall(
            r" (all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\(",
            compiled.as_text(),
        )
    )
    assert found["collective-permute"] and found["all-reduce"]  # neighbours' edges, and sums
    assert not found["all-gather"] and not found["all-to-all"]
