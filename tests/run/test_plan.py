"""What a training would take, on a network that compiles at once."""

import re

import jax
import numpy as np
import pytest

from configs import brats_dxnet
from crossdim_jax.challenges.brats import phantom
from crossdim_jax.errors import ConfigError
from crossdim_jax.models.layers import require_multiple
from crossdim_jax.run import cases as run_cases
from crossdim_jax.run import experiment, plan
from crossdim_jax.training import initialise
from tests import toy


class Net(toy.ToyNet):
    def check_size(self, spatial):
        require_multiple(spatial, (4, 32, 32), "this network")


@pytest.fixture
def make(tmp_path):
    def make(data=2, depth=1, *, trains=True, **fields):
        root = tmp_path / "cases"
        if not root.exists():
            phantom.generate(root, 4, shape=(24, 40, 36))
        read = brats_dxnet.get_config("debug").copy_and_resolve_references().unlock()
        del read.phantoms, read.model
        read.model = {"name": "toy"}
        read.update_from_flattened_dict(
            {
                "data.root": str(root),
                "data.cache": str(tmp_path / "cache"),
                "data.patch": (16, 32, 32),
                "data.num_processes": 0,
                "train.batch_size": 4,
                "mesh.data": data,
                "mesh.depth": depth,
            }
            | {name.replace("__", "."): value for name, value in fields.items()}
        )
        return experiment.build(read, tmp_path / "run", trains=trains)

    with toy.registered(Net):
        yield make


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_budget_that_is_none_is_refused(make, budget):
    with pytest.raises(ConfigError, match="--budget_gib=.*above 0"):
        plan.run(make(), budget_gib=budget)


def test_the_account_has_all_that_was_asked_and_what_is_said_to_fit_does(make, tmp_path, capsys):
    job, budget = make(data=1), 0.05
    text = plan.run(job, budget_gib=budget)
    lines = {line[:21].strip(): line[21:] for line in text.splitlines()[1:]}
    assert list(lines) == [
        "training step", "inference", "largest batch", "largest patch", "a step", "an epoch",
    ]  # fmt: skip
    assert "total" in capsys.readouterr().out  # the parameters
    assert "1 steps" in lines["an epoch"] and "1 epochs" in lines["an epoch"]
    assert not (tmp_path / "run").exists()
    most = int(re.search(r"batch (\d+)", lines["largest batch"])[1])
    patch = tuple(map(int, re.search(r"patch \((.*?)\)", lines["largest patch"])[1].split(",")))
    assert most > 4 and np.prod(patch) > np.prod((16, 32, 32))
    step, state = step_and_state(job)
    for batch, fits in ((most, True), (most + 2 + most // 8, False)):
        needs = plan.Memory.of_step(plan._compile(job, step, state, (16, 32, 32), batch))
        assert (needs.total <= budget * plan.GIB) == fits


def step_and_state(job):
    optimizer = job.optimizer(1)
    state = initialise.init_state(job.model, optimizer, job.image_shape, job.mesh, seed=0, say=None)
    return job.train_step(optimizer), state


def test_memory_counts_a_donated_state_once(make):
    job = make(data=1)
    step, state = step_and_state(job)
    memory = plan.Memory.of_step(plan._compile(job, step, state, (16, 32, 32), 4))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    batch = 4 * 16 * 32 * 32 * (4 * 4 + 3)
    assert size + batch <= memory.arrays < size + batch + 20_000


def test_without_cases_steps_are_timed_on_random_numbers(make):
    text = plan.run(make(data__root=""), budget_gib=0.001)
    assert "more than 0.0 GiB" in text and text.count("none fits") == 2
    assert "not known: config.data.root is empty" in text


def test_a_batch_that_does_not_divide_is_refused(make):
    with pytest.raises(ConfigError, match="batch_size=3"):
        make(train__batch_size=3)
    assert make(train__batch_size=3, trains=False).training.batch_size == 3


def test_windows_are_spread_over_the_devices(make):
    predict = make(data=2, inference__window_batch=3).predictor(flipped=False)
    assert predict.window_batch == 6 and predict.sharding.spec[0] == "data"
    uneven = make(data=1, depth=3, trains=False).predictor(flipped=False)  # of 16 slices
    assert uneven.sharding.is_fully_replicated


@pytest.mark.parametrize(("data", "depth", "found"), [(-1, 1, 4), (-1, 3, 1), (2, 2, 2)])
def test_prediction_takes_the_devices_that_a_training_batch_leaves(make, data, depth, found):
    mesh = make(data=data, depth=depth, trains=False).for_inference().mesh
    assert dict(mesh.shape) == {"data": found, "depth": depth}


def test_an_unknown_way_of_predicting_is_refused(make):
    with pytest.raises(ConfigError, match="mode='slices' is unknown; known: window, whole"):
        make(inference__mode="slices")


def test_whole_volumes_are_planned_for_the_largest_case(make):
    job = make(data=1, depth=4, inference__mode="whole")
    cases = run_cases.prepare_cases(job)[1]
    said = plan._inference(job, step_and_state(job)[1], cases, plan.GIB)
    assert f"a whole volume of {max((case.shape for case in cases), key=np.prod)}" in said


def test_the_configs_own_size_is_known_to_fit_however_wrong_the_guesses():
    """The larger ones take far more than a straight line through its memory says."""
    memory = plan.Memory(arrays=0, temporaries=10)
    huge = plan.Memory(arrays=0, temporaries=10_000)
    candidates = [((32, 32, 32), batch) for batch in range(9, 0, -1)]
    own = candidates[-1]
    found = plan._largest(candidates, lambda *_: huge, (own, memory), budget=100)
    assert found.startswith("patch (32, 32, 32), batch 1")
    assert plan._largest(candidates, lambda *_: huge, (own, memory), budget=5) is None
