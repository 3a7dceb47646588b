"""Every network takes every encoder, whatever its family and where its features begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import models
from crossdim_jax.models import encoders
from crossdim_jax.weights.paths import flatten
from tests import cut_families

SHAPES = {"omnianet": (1, 64, 32, 2), "dxnet": (1, 32, 32, 64, 2), "dsnet": (1, 97, 32, 64, 2)}
SMALL = ("resnet18", "regnety_002", "vgg11", *cut_families.ROWS)


@pytest.mark.parametrize("encoder", SMALL)
def test_every_network_takes_a_small_one_of_every_family(encoder):
    with cut_families.cut():
        check_sizes(encoder)


# One of each family and kind of block, for DS-Net, whose 2D network is an Omnia-Net.
KINDS = (
    *("efficientnet_b0", "efficientnet_lite0", "efficientnet_es", "efficientnet_cc_b0_4e"),
    *("efficientnet_blur_b0", "efficientnet_b0_gn", "efficientnet_b0_g16_evos"),
    *("efficientnet_x_b3", "efficientnet_h_b5", "efficientnetv2_b0", "efficientnetv2_rw_t"),
    *("resnet18", "resnet50", "resnet50_keras", "resnext50_32x4d", "wide_resnet50_2"),
    *("regnetx_002", "regnety_002", "vgg11", "vgg11_bn", "convnext_tiny", "densenet121"),
    *("mobilenetv2_100", "mobilenetv3_small_100"),
)
HUGE = ("regnety_2560",)  # its kernels take 5 GB in 2D and 7.6 GB in 3D
RUNS = [
    (network, encoder)
    for network in ("dxnet", "dsnet", "omnianet")
    for encoder in (KINDS if network == "dsnet" else encoders.ENCODERS)
    if encoder not in HUGE
]


def test_dsnet_is_tried_on_every_kind_of_module():
    assert {type(encoders.build(name)) for name in KINDS} == {
        type(encoders.build(name)) for name in encoders.ENCODERS
    }


@pytest.mark.slow
@pytest.mark.parametrize(("network", "encoder"), RUNS)
def test_every_network_runs_on_every_encoder(network, encoder, rng):
    """Whole encoders, in evaluation; with few pixels, in programs that compile soon."""
    shape = SHAPES[network]
    model = models.build(network, encoder=encoder, norm="instance", ops="lax")
    variables = models.init(model, 0, shape)
    run = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})
    logits = np.asarray(run(variables, jnp.asarray(rng.normal(size=shape), jnp.float32)))
    assert logits.shape == (*shape[:-1], model.out_channels)
    assert np.isfinite(logits).all()
    assert (logits.std(axis=tuple(range(1, logits.ndim - 1))) > 1e-3).all()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [name for name in encoders.ENCODERS if name not in KINDS])
def test_what_is_not_run_gives_logits_of_its_inputs_size(encoder):
    check_sizes(encoder, SHAPES if encoder in HUGE else ["dsnet"])


def check_sizes(encoder, networks=SHAPES):
    for network in networks:
        shape = SHAPES[network]
        model = models.build(network, encoder=encoder, norm="instance", ops="lax")
        logits = jax.eval_shape(
            lambda model=model, shape=shape: model.init_with_output(
                jax.random.key(0), jnp.zeros(shape)
            )[0]
        )
        assert logits.shape == (*shape[:-1], model.out_channels)


IN_MAKE_TEST = (("omnianet", "vgg11_bn"),)
SHORT = [
    pytest.param(
        network, encoder, marks=() if (network, encoder) in IN_MAKE_TEST else pytest.mark.slow
    )
    for network in SHAPES
    for encoder in ("vgg11_bn", "resnext50_32x4d", "resnet50_keras", "regnety_002")
]


@pytest.mark.parametrize(("network", "encoder"), SHORT)
def test_short_ones_run_and_every_kernel_of_the_encoder_counts(network, encoder, rng):
    shape = {**SHAPES, "dxnet": (1, 32, 64, 64, 2)}[network]  # 1 x 2 x 2 at its coarsest
    with cut_families.cut():
        options = {"widths": (4,) * 5} if network != "dsnet" else {}
        model = models.build(network, encoder=encoder, ops="lax", drop_path_rate=0.0, **options)
        variables = models.init(model, 0, shape)
        image = jnp.asarray(rng.normal(size=shape), jnp.float32)

        def loss(params):
            logits = model.apply({**variables, "params": params}, image)
            return jnp.mean(jnp.square(logits - 1))

        value, gradients = jax.jit(jax.value_and_grad(loss))(variables["params"])
    assert np.isfinite(value)
    found = gradients["net2d"]["encoder"] if network == "dsnet" else gradients["encoder"]
    kernels = {path: g for path, g in flatten(found).items() if path.endswith("kernel")}
    assert len(kernels) > 4
    assert not [path for path, g in kernels.items() if not (np.isfinite(g).all() and g.any())]
