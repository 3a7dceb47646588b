"""A file system that really is full. What stands in for it elsewhere: test_loop.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crossdim_jax.training import checkpoint
from tests import toy


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, which takes the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system of its own can be mounted here: {error}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


# In a process of its own: what fails in Orbax's threads is reported again when they are collected.
RUN = """
import sys
from pathlib import Path
from crossdim_jax.errors import DataError
from crossdim_jax.training.loop import fit
from tests import toy

workdir, filler = Path(sys.argv[1]), Path(sys.argv[2])
state, step, mesh = toy.make_run(sync_period=3)

def fill(position):
    if position == 3:
        with filler.open("wb", buffering=0) as file:
            for size in (65536, 512):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

for batches, steps in ((toy.Batches(), 2), (toy.Batches(on_batch=fill), 6), (toy.Batches(), 6)):
    try:
        state, step, mesh = toy.make_run(sync_period=3)
        fit(state, step, batches, workdir=workdir, mesh=mesh, regions=toy.REGIONS,
            total_steps=steps, steps_per_epoch=2, log_every_steps=1, progress=False)
    except DataError as error:
        print(error)
        filler.unlink()
"""


def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_room(small_disk):
    workdir, root = small_disk / "run", Path(__file__).resolve().parents[2]
    workdir.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(workdir), str(small_disk / "filler")],
        cwd=root,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [said] = done.stdout.splitlines()
    assert "No space left on device" in said and str(workdir) in said
    assert [line["step"] for line in toy.read_metrics(workdir)] == [1, 2, 3, 4, 5, 6]
    assert checkpoint.load_variables(workdir, best=False)[1]["step"] == 6
