"""The way of a training step, from the command to the network: few calls, each worth reading."""

import traceback
from pathlib import Path

import jax
import numpy as np
import pytest

import crossdim_jax
from configs import dataset_dxnet
from crossdim_jax import losses
from crossdim_jax.run import experiment, train
from crossdim_jax.training import optim, step
from tests import dataset_folders, small_run, toy

ROOT = Path(crossdim_jax.__file__).parent
PAIRED = [(organ, side) for organ in ("kidney", "lung") for side in ("left", "right")]


class Reached(Exception):
    """The network is called; `calls` are those of ours that have led there."""

    def __init__(self):
        frames = [(Path(f.filename), f.name) for f in traceback.extract_stack()]
        ours = [(path, name) for path, name in frames if path.is_relative_to(ROOT)]
        self.calls = [f"{path.relative_to(ROOT).with_suffix('')}.{name}" for path, name in ours]


class Stop(toy.ToyNet):
    """Says how it was reached."""

    def __call__(self, x, *, train=False):
        if train:
            raise Reached
        return super().__call__(x, train=train)


def test_a_step_lies_few_calls_below_the_command(tmp_path):
    """`launch.main` calls `run`; jax calls `sum_loss` to take its gradient."""
    small_run.make_cases(tmp_path / "cases")
    config = small_run.config(tmp_path / "cases", tmp_path / "cache", 1)
    with toy.registered(Stop), pytest.raises(Reached) as caught:
        train.run(experiment.build(config, tmp_path / "run"))
    compiling = ["training/step.__call__", "training/step.compile"]
    way = ["run/train.run", "training/loop.fit", *compiling, "training/step.gradient"]
    assert caught.value.calls == [*way, "training/step.sum_loss"]


def test_it_is_said_that_sides_forbid_mirroring(tmp_path, capsys):
    sides = {f"{organ}_{side}": n for n, (organ, side) in enumerate(PAIRED, 1)}
    root = dataset_folders.nnunet(tmp_path / "d", labels={"background": 0} | sides)
    config = dataset_dxnet.get_config("debug")
    with config.unlocked():
        del config.phantoms
        config.challenge.name = "dataset"
        config.model = {"name": "toy"}
        config.data.root, config.data.cache = str(root), str(tmp_path / "cache")
        config.data.num_processes = 0
    with toy.registered(Stop), pytest.raises(Reached):
        train.run(experiment.build(config, tmp_path / "run"))
    said = capsys.readouterr().out
    assert "mirroring along x is off" in said and "kidney_left and kidney_right; lung_left" in said


def test_the_step_that_is_compiled_is_the_pure_function():
    image, target = toy.make_arrays(0, 2)
    pure = step.make_train_step(Stop(), optim.make(), losses.dice_bce, seed=0)
    state = toy.make_run()[0]
    with pytest.raises(Reached) as caught:
        jax.eval_shape(pure, state, {"image": np.array(image), "target": target})
    assert [name.rpartition(".")[2] for name in caught.value.calls] == [
        "__call__", "gradient", "sum_loss",
    ]  # fmt: skip
