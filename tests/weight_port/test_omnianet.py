"""The 2D weights that Omnia-Net's config asks for, and loads."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from crossdim_jax.run import config as config_lib
from crossdim_jax.run import experiment, initial_state
from crossdim_jax.weights.file import save_weights
from crossdim_jax.weights.merge import merge, requirements
from crossdim_jax.weights.recipe import for_network
from tests.weight_port import tiny
from weight_port import plan
from weight_port.commands import making
from weight_port.convert import convert

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "camus_omnianet.py")
# ml_collections 1.1 reads config files in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)


def test_the_config_asks_for_a_2d_stem_of_sixteen_channels():
    todo = plan.of_config(CONFIG)
    recipe = todo.recipe
    assert (todo.name, str(todo.out)) == (
        "tf_efficientnet_b0.ns_jft_in1k",
        "weights/omnianet_b0_16ch.safetensors",
    )
    assert (recipe.ndim, recipe.in_channels, recipe.stem, recipe.norm) == (2, 16, "tile", "batch")
    assert recipe.inflate is None
    assert (todo.expected["architecture"], todo.expected["eps"]) == ("efficientnet_b0", 1e-3)
    without = plan.of_config(CONFIG, ["--config.model.stem_width=0"])
    assert without.recipe.in_channels == 1


def test_what_is_ported_for_the_config_is_what_it_loads(tmp_path):
    with tiny.registered():
        file = tmp_path / "w.safetensors"
        options = [
            "--config.model.encoder=efficientnet_tiny",
            "--config.weights.source=efficientnet_tiny",
            f"--config.weights.file={file}",
        ]
        source = tiny.source()
        config = config_lib.read(CONFIG, options)
        job = experiment.build(config, tmp_path / "run")
        needs = requirements(job.model, _variables(job))
        claims = job.weights.claims
        recipe = for_network(job.model.encoder, needs, claims, reestimate=False, head=True)
        converted = convert(source, recipe)
        save_weights(file, converted.arrays, making.record(source, recipe, converted))
        weights = initial_state.load_weights(job)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), _variables(job))
        merged, report = merge(zeros, weights)
        stem = merged["params"]["encoder"]["conv_stem"]["kernel"]
        three = source.arrays["conv_stem.weight"].transpose(2, 3, 1, 0)
        expected = np.take(three, np.arange(16) % 3, axis=2) * 3 / 16
        np.testing.assert_allclose(stem, expected, rtol=1e-6)
        assert not report.fresh and not any("encoder" in path for path in report.outside)

        other = config_lib.read(CONFIG, [*options, "--config.model.stem_width=0"])
        with pytest.raises(WeightsError, match="16 input channels by 'tile', asked for 1 by"):
            initial_state.load_weights(experiment.build(other, tmp_path / "run"))


def _variables(job):
    image = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    return jax.eval_shape(job.model.init, jax.random.key(0), image)
