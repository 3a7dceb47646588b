"""What an experiment decides itself: devices, splits, and what may change in a used folder."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import brats_dxnet
from crossdim_jax import experiment, optim, params, run_folder
from crossdim_jax.errors import ConfigError, DataError, WeightsError
from crossdim_jax.models.layers import Norm
from crossdim_jax.train_state import TrainState
from tests.weight_record import RECORD


def config(**fields):
    result = brats_dxnet.get_config()
    with result.unlocked():
        result.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return result


@pytest.mark.parametrize("batch,accumulate,used", [(1, 1, 1), (4, 1, 4), (6, 1, 3), (8, 4, 2)])
def test_as_many_devices_are_used_as_share_the_batch(batch, accumulate, used, capsys):
    assert len(jax.devices()) == 4
    mesh = experiment.make_mesh(config(train__batch_size=batch, train__accumulate=accumulate))
    assert dict(mesh.shape) == {"data": used, "depth": 1}
    assert ("--config.train.batch_size" in capsys.readouterr().out) == (used < 4)


def test_depth_takes_its_devices_first():
    assert dict(experiment.make_mesh(config(mesh__depth=4)).shape) == {"data": 1, "depth": 4}
    with pytest.raises(ConfigError, match="depth=5"):
        experiment.make_mesh(config(mesh__depth=5))


@pytest.mark.parametrize(
    "field,value", [("epochs", 0), ("batch_size", 0), ("keep", 0), ("checkpoint_every_steps", 0)]
)
def test_numbers_no_training_can_have_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"config.train.{field}=0"):
        experiment.check_values(config(**{f"train__{field}": value}))


def test_a_folder_without_checkpoint_takes_another_config_one_with_does_not(tmp_path):
    run_folder.claim(tmp_path, config().to_dict())
    changed = config(optim__b1=0.9).to_dict()
    run_folder.claim(tmp_path, changed)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"optim\.b1: 0\.9 -> 0\.95"):
        run_folder.claim(tmp_path, config().to_dict())
    run_folder.claim(tmp_path, changed | {"inference": {"flips": True}})


@pytest.mark.parametrize(
    "field,value,same",
    [
        ("model__norm", "group", False),
        ("challenge__modalities", ("t2", "t1"), False),
        ("challenge__et_min_mm3", 50.0, True),
        ("model__dtype", "bfloat16", True),
        ("inference__flips", True, True),
        ("train__epochs", 5, True),
    ],
)
def test_only_the_trained_network_is_evaluated(tmp_path, field, value, same):
    run_folder.claim(tmp_path, config().to_dict())
    other = config(**{field: value}).to_dict()
    if same:
        run_folder.require_same_network(tmp_path, other)
    else:
        with pytest.raises(ConfigError, match=field.replace("__", r"\.")):
            run_folder.require_same_network(tmp_path, other)


def test_a_folder_nothing_was_trained_in_is_named(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        run_folder.require_same_network(tmp_path, config().to_dict())


def test_a_weight_file_must_be_what_the_config_says(tmp_path):
    """The config is the record of what was trained: it may not say `mean` of `repeat` weights."""
    path = tmp_path / "w.safetensors"
    params.save_weights(path, {}, RECORD)
    fields = {"weights__file": str(path), "mesh__data": 1}
    assert experiment.load_weights(experiment.build(config(**fields), tmp_path)) is not None
    for name, value in {"inflate": "mean", "stem": "gray", "source": "efficientnet_b0"}.items():
        wrong = experiment.build(config(**fields, **{f"weights__{name}": value}), tmp_path)
        with pytest.raises(WeightsError, match=f"{name}: found"):
            experiment.load_weights(wrong)
        waived = config(**fields, **{f"weights__{name}": value}, weights__ignore=(name,))
        assert experiment.load_weights(experiment.build(waived, tmp_path)) is not None


def test_the_experiment_file_can_be_written_as_json():
    json.dumps(config().to_dict())


class Measured(nn.Module):
    """Its first norm stands for a network's; it refuses what measuring must not ask of it."""

    norm: str = "frozen"
    drop_path_rate: float = 0.5

    @nn.compact
    def __call__(self, x, *, train=False):
        assert not train or (self.norm, self.drop_path_rate) == ("batch", 0.0)
        return Norm(self.norm, name="norm")(x, train=train)


def test_statistics_are_measured_on_the_patches_training_sees_first(monkeypatch, tmp_path, rng):
    """In its micro-batches, by the network with batch norms, at the fast parameters."""
    fields = {"train__batch_size": 4, "train__accumulate": 2, "weights__reestimate": 3}
    settings = config(**fields, mesh__data=1)
    model = Measured()
    mesh = experiment.make_mesh(settings)
    built = experiment.Experiment(settings, tmp_path, None, model, mesh)
    images = rng.normal(2, 3, size=(3, 2, 4, 4, 4, 5)).astype(np.float32)
    asked = []

    def data(experiment, training, batch_size, **options):
        asked.append((training, batch_size))
        return [{"image": image} for image in images]

    monkeypatch.setattr(experiment, "train_data", data)
    variables = model.init(jax.random.key(0), images[0])
    optimizer = optim.make(learning_rate=1e-3)
    params = optimizer.wrap(variables["params"])
    state = TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], ())
    found, patches = experiment.reestimate(built, state, ["the cases"])
    assert asked == [(["the cases"], 2)] and patches == 4
    seen = images[:2].reshape(2, -1, 5)
    stats = found.batch_stats["norm"]
    np.testing.assert_allclose(stats["mean"], seen.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], seen.var(1, ddof=1).mean(0), rtol=1e-4)
    assert found.params is state.params


@pytest.mark.parametrize(
    "fields,match",
    [
        ({"weights__reestimate": -1}, "reestimate=-1 must be 0 or more"),
        ({"weights__reestimate": 8, "weights__file": ""}, "config.weights.file is empty"),
        ({"weights__reestimate": 8}, "norm 'instance' the network keeps no running statistics"),
    ],
)
def test_statistics_that_cannot_be_measured_are_refused_early(fields, match, tmp_path):
    path = tmp_path / "w.safetensors"
    params.save_weights(path, {}, {})
    built = experiment.build(
        config(**{"weights__file": str(path)} | fields, mesh__data=1), tmp_path
    )
    with pytest.raises(ConfigError, match=match):
        experiment.load_weights(built)


def test_older_configs_do_not_speak_of_statistics(tmp_path):
    older = config(weights__file="", mesh__data=1)
    with older.unlocked():
        del older.weights["reestimate"], older.weights["inflate_at"]
    assert experiment.load_weights(experiment.build(older, tmp_path)) is None
