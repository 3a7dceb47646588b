"""DX-Net: golden parameter counts, the two variants, compute dtype, formulations."""

import jax
import jax.numpy as jnp
import pytest

from crossdim_jax import models
from crossdim_jax.errors import ConfigError
from tests.models import b0
from tests.models.test_efficientnet import count


def abstract(shape=(1, 32, 32, 32, 4), **kwargs):
    model = models.build("dxnet", ops="lax", **kwargs)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_golden_parameter_count(variant):
    params = abstract(variant=variant)["params"]
    assert count(params) == 12_542_831
    assert count(params["encoder"]) == 4_289_180


def test_variants_differ_as_the_released_code_does():
    paper, released = (models.build("dxnet", variant=v) for v in ("paper", "released"))
    paper, released = paper.encoder, released.encoder
    assert (paper.norm, paper.padding, paper.eps) == ("instance", "same", 1e-3)
    assert (released.norm, released.padding, released.eps) == ("batch", "symmetric", 1e-5)
    assert released.drop_path_rate == 0.4
    assert "batch_stats" not in abstract(variant="paper")
    assert "batch_stats" in abstract(variant="released")
    # A stated attribute wins over the variant's; None leaves it to the variant.
    mixed = models.build("dxnet", variant="released", norm="group", padding=None).encoder
    assert (mixed.norm, mixed.padding) == ("group", "symmetric")


@pytest.mark.parametrize(
    "encoder", ["efficientnet_b4", pytest.param("efficientnet_b7", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("shape", [(2, 32, 64, 96, 2)])
def test_any_encoder_and_non_cubic_input(encoder, shape):
    model = models.build("dxnet", encoder=encoder, out_channels=5, ops="lax")
    logits = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros(shape))[0])
    assert logits.shape == (*shape[:-1], 5)


def test_sizes_that_do_not_fit_are_refused_with_one_that_does():
    with pytest.raises(ValueError, match=r"multiples of 32.*\(64, 64, 32\)"):
        abstract((1, 40, 64, 32, 4))


def test_unknown_names_list_the_known_ones():
    wrong = {
        "variant": ("draft", "paper, released"),
        "encoder": ("resnet", "efficientnet_b0"),
        "norm": ("layer", "batch, instance, group"),
        "padding": ("valid", "same, symmetric"),
        "ops": ("quick", "auto, lax, fast"),
        "dtype": ("bf16", "bf16"),
        "width": (3, "width"),
    }
    for field, (value, known) in wrong.items():
        with pytest.raises(ConfigError, match=known):
            models.build("dxnet", **{field: value})
    with pytest.raises(ConfigError, match="dxnet"):
        models.build("unet")


@b0.SHORT_AND_WHOLE
def test_fast_and_lax_formulations_agree_with_the_same_parameters(rng, b0_length):
    image = jnp.asarray(rng.normal(size=(1, 32, 32, 32, 2)), jnp.float32)
    variables = models.init(models.build("dxnet"), 0, image.shape)

    def logits(mode):
        return jax.jit(models.build("dxnet", ops=mode).apply)(variables, image)

    fast, lax = logits("fast"), logits("lax")
    assert float(jnp.abs(fast - lax).max()) <= 1e-4 * float(jnp.abs(lax).max())


def test_bf16_computes_in_bf16_and_keeps_float32_parameters():
    image = jax.ShapeDtypeStruct((1, 32, 32, 32, 2), jnp.float32)
    model = models.build("dxnet", dtype="bfloat16", ops="lax")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    program = jax.make_jaxpr(model.apply)(variables, image)
    heavy = [e for e in program.eqns if e.primitive.name == "conv_general_dilated"]
    assert len(heavy) > 20
    assert {v.aval.dtype for e in heavy for v in e.invars} == {jnp.dtype("bfloat16")}
    assert program.out_avals[0].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
