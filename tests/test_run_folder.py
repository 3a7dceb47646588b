import json

import pytest

from crossdim_jax import run_folder
from crossdim_jax.errors import ConfigError, DataError

CONFIG = {
    "optim": {"lr": 1e-3, "betas": (0.95, 0.99)},
    "log_every_steps": 10,
    "data": {"patch": "a"},
}


def trained(folder):
    """A run folder with a checkpoint in it: from then on its config counts."""
    run_folder.claim(folder, CONFIG)
    (folder / "checkpoints" / "4").mkdir(parents=True)


def test_the_same_config_may_come_again(tmp_path):
    for _ in range(2):
        path = run_folder.claim(tmp_path / "run", CONFIG)
    assert json.loads(path.read_text())["optim"] == {"lr": 1e-3, "betas": [0.95, 0.99]}
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]


def test_another_config_is_refused_with_every_difference(tmp_path):
    trained(tmp_path)
    other = {"optim": {"lr": 3e-3, "betas": (0.95, 0.99)}, "log_every_steps": 10, "seed": 1}
    with pytest.raises(ConfigError) as caught:
        run_folder.claim(tmp_path, other)
    text = str(caught.value)
    for line in (
        "optim.lr: 0.001 -> 0.003",
        "data.patch: 'a' -> '(absent)'",
        "seed: '(absent)' -> 1",
    ):
        assert line in text
    assert "betas" not in text and str(tmp_path) in text
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 1e-3


def test_harmless_fields_may_change_and_are_recorded(tmp_path):
    trained(tmp_path)
    changed = CONFIG | {"log_every_steps": 5, "inference": {"overlap": 0.5}}
    run_folder.claim(tmp_path, changed)
    assert json.loads((tmp_path / "config.json").read_text())["log_every_steps"] == 5
    with pytest.raises(ConfigError, match="log_every_steps: 5 -> 7"):
        run_folder.claim(tmp_path, changed | {"log_every_steps": 7}, harmless=())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/run: the run folder cannot be written"):
        run_folder.claim(tmp_path / "file" / "run", CONFIG)


def test_a_damaged_config_is_named(tmp_path):
    trained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="config.json: not readable JSON"):
        run_folder.claim(tmp_path, CONFIG)


def test_other_processes_only_check(tmp_path):
    run_folder.claim(tmp_path, CONFIG, write=False)
    assert not (tmp_path / "config.json").exists()
