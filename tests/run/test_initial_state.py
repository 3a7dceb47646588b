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
from crossdim_jax.run import config as config_lib
from crossdim_jax.training import optim
from crossdim_jax.training.state import TrainState
from crossdim_jax.weights.file import Weights, save_weights
from crossdim_jax.weights.recipe import Recipe
from tests import toy
from tests.weight_port import tiny
from tests.weight_record import RECORD
from weight_port import plan
from weight_port.commands import making
from weight_port.convert import convert


def config(**fields):
    result = brats_dxnet.get_config()
    with result.unlocked():
        result.model.ops = "lax"  # traced in half of the time
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


@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
def test_a_2d_file_starts_a_3d_network_as_the_ported_file_does(tmp_path):
    """The recipe that porting makes of the same config gives the same first parameters."""
    flat = Recipe(ndim=2, in_channels=3, norm="batch", inflate=None, stem="tile")
    with tiny.registered():
        source = tiny.source()
        converted = convert(source, flat)
        path = tmp_path / "flat.safetensors"
        save_weights(path, converted.arrays, making.record(source, flat, converted))
        fields = {"model.encoder": "efficientnet_tiny", "weights.source": "efficientnet_tiny"}
        fields |= {"weights.inflate": "gaussian", "model.depth_kernels": "(1,3,3,3,3,3)"}
        overrides = [f"--config.{k}={v}" for k, v in (fields | {"weights.file": path}).items()]
        todo = plan.of_config("configs/brats_dxnet.py", overrides)
        job = experiment.build(config_lib.read("configs/brats_dxnet.py", overrides), tmp_path / "r")
        ported = convert(source, todo.recipe)
        state = job.optimizer(1), []
        found, record = initial_state.first_state(job, *state, initial_state.load_weights(job))
        expected, _ = initial_state.first_state(job, *state, Weights(ported.arrays, {}))
        jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
        assert (record["ndim"], record["inflate"], record["depth_taps"][0]) == (3, "gaussian", 1)
        assert record["by_way_of"]["file"] == "flat.safetensors"

        seeded = [*overrides, "--config.weights.control=random", "--config.seed=7"]
        job = experiment.build(config_lib.read("configs/brats_dxnet.py", seeded), tmp_path / "r")
        record = initial_state.load_weights(job).metadata
        assert (record["control"], record["control_seed"]) == ("random", 7)


def test_a_control_without_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="weights.control='shuffled'.*weights.file is empty"):
        experiment.build(config(weights__control="shuffled", weights__file=""), tmp_path)
    with pytest.raises(ConfigError, match="weights.control.*'shuffle'.*shuffled, random"):
        experiment.build(config(weights__control="shuffle"), tmp_path)


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
        for field in ("reestimate", "inflate_at", "control"):
            del older.weights[field]
    assert initial_state.load_weights(experiment.build(older, tmp_path)) is None
