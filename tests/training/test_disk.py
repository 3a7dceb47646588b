"""A disk that is full while a checkpoint is written."""

import asyncio
import subprocess
import sys

import pytest
import tensorstore

from crossdim_jax.training import checkpoint, checkpoint_faults
from tests import small_run


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB, which takes the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system of its own can be mounted here: {error}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """The folder that holds the cases, their cache, and compiled programs."""
    folder = tmp_path_factory.mktemp("disk")
    small_run.make_cases(folder / "cases")
    return folder


@pytest.fixture(scope="module")
def start(cases):
    with small_run.copies(cases) as start:
        yield start


def finish(process):
    _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr


def assert_goes_on(cases, workdir, start):
    code, told = finish(small_run.begin(cases, workdir, 6, start))
    assert code == 0 and "going on after step 2 of 6" in told, told
    lines = [(line["kind"], line["step"]) for line in small_run.lines(workdir)]
    assert lines == [("train", 3), ("train", 6), ("validation", 6)]
    assert checkpoint.load_variables(workdir, best=False)[1]["step"] == 6


def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_room(small_disk, cases, start):
    workdir = small_disk / "run"
    full = {"full_after": 2, "disk": str(small_disk)}
    code, told = finish(small_run.begin(cases, workdir, 6, start, **full))
    assert code == 1 and "Traceback" not in told
    [said] = [line for line in told.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in said and str(workdir) in said
    (small_disk / "filler").unlink()
    assert_goes_on(cases, workdir, start)


def test_a_file_that_cannot_be_written_whole_leaves_the_last_checkpoint_intact(cases, start):
    workdir = cases / "run"
    code, told = finish(small_run.begin(cases, workdir, 6, start, full_after=2))
    assert code == 1 and "Traceback" not in told
    message = next(line for line in told.splitlines() if line.startswith("error: "))
    assert f"{workdir / 'checkpoints'}: writing the checkpoint of step 4 failed" in message
    assert "too large" in message and "The last complete checkpoint is step 2." in message
    assert_goes_on(cases, workdir, start)


def test_answers_to_a_write_that_was_given_up_are_silent_and_others_are_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    promise, answer = tensorstore.Promise.new()

    async def await_then_give_up(answer):
        next(answer.__await__())

    asyncio.run(await_then_give_up(answer))
    checkpoint_faults.silence_late_answers.__wrapped__()
    promise.set_result(0)
    assert not shown

    class Broken:
        def __del__(self):
            raise RuntimeError("Event loop is closed")

    Broken()
    assert len(shown) == 1
