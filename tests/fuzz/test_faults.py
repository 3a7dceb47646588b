"""A training that is stopped or killed again and again is the training that is not."""

import random
import re
import signal
import time

import numpy as np
import pytest

from tests import small_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the cases, their cache, and compiled programs."""
    root = tmp_path_factory.mktemp("small")
    small_run.make_cases(root / "cases")
    return root


@pytest.fixture(scope="module")
def start(folder):
    with small_run.copies(folder) as start:
        yield start


def finish(process):
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stderr


def terminate(folder, name, steps, start):
    """Tells a new run to terminate while it trains; returns the step that it then saved."""
    process = small_run.begin(folder, name, steps, start, seconds=0.1)
    small_run.wait_for(process, "ready")
    until = time.monotonic() + 120
    while not small_run.lines(folder / name) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    return int(re.search(r"stopped and saved after step (\d+)", stderr)[1])


@pytest.mark.parametrize(
    ("kills", "steps"), [(2, 24), pytest.param(20, 120, marks=pytest.mark.slow)]
)
def test_a_run_stopped_at_random_moments_ends_as_the_uninterrupted_one(folder, start, kills, steps):
    straight, workdir = folder / f"straight_{steps}", folder / f"killed_{steps}"
    finish(small_run.begin(folder, straight.name, steps, start))
    stopped = terminate(folder, workdir.name, steps, start)
    assert 3 <= stopped < steps
    chance, done = random.Random(kills), 0
    while done < kills:
        process = small_run.begin(folder, workdir.name, steps, start, seconds=0.04)
        if chance.random() < 0.75:  # else before it trains: reading, compiling
            small_run.wait_for(process, "ready")
        time.sleep(chance.uniform(0.0, 0.9))
        process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, stderr  # it had not ended by itself
        done += 1
    assert not (workdir / "final.npz").exists()
    told = finish(small_run.begin(folder, workdir.name, steps, start))
    assert int(re.search(rf"going on after step (\d+) of {steps}", told)[1]) >= stopped
    expected, found = small_run.final(straight), small_run.final(workdir)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert small_run.lines(workdir) == small_run.lines(straight)
    kinds = [line["kind"] for line in small_run.lines(workdir)]
    assert kinds.count("train") == steps / 3 and kinds.count("validation") == steps / 6
