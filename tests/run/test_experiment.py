"""What an experiment decides itself: its devices, and what may change in a used folder."""

import json

import jax
import pytest

from configs import brats_dxnet
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.run import experiment
from crossdim_jax.storage import run_folder


def config(**fields):
    result = brats_dxnet.get_config()
    with result.unlocked():
        result.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return result


@pytest.mark.parametrize("batch,accumulate,used", [(1, 1, 1), (4, 1, 4), (6, 1, 3), (8, 4, 2)])
def test_as_many_devices_are_used_as_share_the_batch(batch, accumulate, used, capsys, tmp_path):
    assert len(jax.devices()) == 4
    fields = config(train__batch_size=batch, train__accumulate=accumulate)
    mesh = experiment.build(fields, tmp_path).mesh
    assert dict(mesh.shape) == {"data": used, "depth": 1}
    assert ("--config.train.batch_size" in capsys.readouterr().out) == (used < 4)


def test_depth_takes_its_devices_first(tmp_path):
    made = experiment.build(config(mesh__depth=4), tmp_path)
    assert dict(made.mesh.shape) == {"data": 1, "depth": 4}
    with pytest.raises(ConfigError, match="depth=5"):
        experiment.build(config(mesh__depth=5), tmp_path)


def test_an_unknown_formulation_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="config.model.ops='fats' is unknown; known: auto, lax"):
        experiment.build(config(model__ops="fats"), tmp_path)


def test_the_challenge_knows_how_far_grids_may_differ(tmp_path):
    for value in (None, 0.2):
        built = experiment.build(config(data__grid_tolerance_mm=value), tmp_path)
        assert built.challenge.grid_tolerance_mm == value
        assert built.challenge.grid_fingerprint() == (
            {} if value is None else {"grid_tolerance_mm": value}
        )
    older = config()
    with older.unlocked():
        del older.data.grid_tolerance_mm
    assert experiment.build(older, tmp_path).challenge.grid_tolerance_mm is None
    with pytest.raises(
        ConfigError, match="config.data.grid_tolerance_mm=-1.0: expected .* above 0"
    ):
        experiment.build(config(data__grid_tolerance_mm=-1.0), tmp_path)


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


def test_the_experiment_file_can_be_written_as_json():
    json.dumps(config().to_dict())
