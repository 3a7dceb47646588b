"""What a training starts from: weights that are what the config says, and measured statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import brats_dxnet
from crossdim_jax.errors import ConfigError, WeightsError
from crossdim_jax.models.encoders import EncoderSpec
from crossdim_jax.models.layers import Norm
from crossdim_jax.run import cases, experiment, initial_state
from crossdim_jax.training import optim
from crossdim_jax.training.state import TrainState
from crossdim_jax.weights.file import save_weights
from tests import toy
from tests.weight_record import RECORD


def config(**fields):
    result = brats_dxnet.get_config()
    with result.unlocked():
        result.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return result


def test_a_weight_file_must_be_what_the_config_says(tmp_path):
    """The config is the record of what was trained: it may not say `mean` of `repeat` weights."""
    path = tmp_path / "w.safetensors"
    save_weights(path, {}, RECORD)
    fields = {"weights__file": str(path), "mesh__data": 1}
    assert initial_state.load_weights(experiment.build(config(**fields), tmp_path)) is not None
    for name, value in {"inflate": "mean", "stem": "gray", "source": "efficientnet_b0"}.items():
        wrong = experiment.build(config(**fields, **{f"weights__{name}": value}), tmp_path)
        with pytest.raises(WeightsError, match=f"{name}: found"):
            initial_state.load_weights(wrong)
        waived = config(**fields, **{f"weights__{name}": value}, weights__ignore=(name,))
        assert initial_state.load_weights(experiment.build(waived, tmp_path)) is not None


class Measured(nn.Module):
    """Its first norm stands for a network's; it refuses what measuring must not ask of it."""

    classes: int = 3
    encoder: EncoderSpec = EncoderSpec(norm="frozen", drop_path_rate=0.5)

    def check_size(self, spatial):
        """Any size will do."""

    @nn.compact
    def __call__(self, x, *, train=False):
        spec = self.encoder
        assert not train or (spec.norm, spec.drop_path_rate) == ("batch", 0.0)
        return Norm(spec.norm, name="norm")(x, train=train)


def test_statistics_are_measured_on_the_patches_training_sees_first(monkeypatch, tmp_path, rng):
    """In its micro-batches, by the network with batch norms, at the fast parameters."""
    fields = {"train__batch_size": 4, "train__accumulate": 2, "weights__reestimate": 3}
    settings = config(**fields, mesh__data=1).unlock()
    del settings.model
    settings.model = {"name": "toy"}
    with toy.registered(Measured):
        built = experiment.build(settings, tmp_path)
    images = rng.normal(2, 3, size=(3, 2, 4, 4, 4, 5)).astype(np.float32)
    asked = []

    def data(experiment, training, batch_size, **options):
        asked.append((training, batch_size))
        return [{"image": image} for image in images]

    monkeypatch.setattr(cases, "train_data", data)
    variables = built.model.init(jax.random.key(0), images[0])
    optimizer = optim.make(learning_rate=1e-3)
    params = optimizer.wrap(variables["params"])
    state = TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], ())
    found, patches = initial_state.reestimate(built, state, ["the cases"])
    assert asked == [(["the cases"], 2)] and patches == 4
    seen = images[:2].reshape(2, -1, 5)
    stats = found.batch_stats["norm"]
    np.testing.assert_allclose(stats["mean"], seen.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], seen.var(1, ddof=1).mean(0), rtol=1e-4)
    assert found.params is state.params


@pytest.mark.parametrize(
    "fields,match",
    [
        ({"weights__reestimate": 8, "weights__file": ""}, "config.weights.file is empty"),
        ({"weights__reestimate": 8}, "norm 'instance' the network keeps no running statistics"),
    ],
)
def test_statistics_that_cannot_be_measured_are_refused_early(fields, match, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {}, {})
    built = experiment.build(
        config(**{"weights__file": str(path)} | fields, mesh__data=1), tmp_path
    )
    with pytest.raises(ConfigError, match=match):
        initial_state.load_weights(built)


def test_older_configs_do_not_speak_of_statistics(tmp_path):
    older = config(weights__file="", mesh__data=1)
    with older.unlocked():
        del older.weights["reestimate"], older.weights["inflate_at"]
    assert initial_state.load_weights(experiment.build(older, tmp_path)) is None
