"""Who takes part in a run, as every launcher says it. That they then agree: test_processes.py."""

import dataclasses
import importlib.util
import socket

import pytest

from crossdim_jax.errors import ConfigError
from crossdim_jax.runtime import distributed
from crossdim_jax.runtime.distributed import find

SLURM = {
    "SLURM_JOB_ID": "70000",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-008],x",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
JOB = {
    "JOB_COMPLETION_INDEX": "1",
    "JAX_NUM_PROCESSES": "2",
    "JAX_COORDINATOR_ADDRESS": "run-0-0.run",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}
SAID = {
    "JAX_COORDINATOR_ADDRESS": "a:1",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "0",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SAID, ("a:1", 2, 0, None)),
        (SLURM, ("gpu007:61808", 4, 3, 1)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0"}, ("gpu007:61808", 4, 3, None)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"}, ("gpu007:61808", 4, 3, 1)),
        (SLURM | {"SLURM_STEP_NODELIST": "n1,n2"}, ("n1:61808", 4, 3, 1)),
        # One task on each node takes all of its devices.
        (SLURM | {"SLURM_STEP_NUM_NODES": "4"}, ("gpu007:61808", 4, 3, None)),
        (MPI | {"JAX_COORDINATOR_ADDRESS": "a:2"}, ("a:2", 4, 2, 0)),
        (JOB, ("run-0-0.run:55527", 2, 1, None)),
    ],
)
def test_what_launchers_say(environment, expected):
    assert dataclasses.astuple(find(environment))[1:] == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {name: value for name, value in SLURM.items() if "STEP" not in name},  # sbatch, no srun
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"JOB_COMPLETION_INDEX": "5", "JAX_NUM_PROCESSES": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ],
)
def test_a_process_on_its_own(environment, monkeypatch):
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [])
    assert find(environment) is None


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [(MPI, "Open MPI"), ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU"), ({}, "TPU")],
)
def test_what_jax_finds_out_itself(environment, launcher, monkeypatch):
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    assert find(environment) == distributed.Cluster(launcher)
    assert find({"JAX_PLATFORMS": "cpu"}) is None


def test_flags_count_more_than_the_environment():
    assert find(SLURM, "b:7", 2, 1).coordinator == "b:7"
    assert find(SLURM, "b:7").coordinator == "b:7"  # the rest is known


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (({}, "a:1"), "needs --processes and --process"),
        (({}, "a:1", 2, 2), "process 2 of 2; expected 0 to 1"),
        (({}, "a", 2, 1), "HOST:PORT"),
        (({}, "a:1", -2, 0), "process 0 of -2"),
        (({}, "", 4, 1), "--processes=4 and --process=1 need --coordinator"),
        (({}, "", None, -1), "need --coordinator"),
        (({"JOB_COMPLETION_INDEX": "1"},), "JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_what_is_missing_or_wrong_is_said(arguments, says):
    with pytest.raises(ConfigError, match=says):
        find(*arguments)


def test_a_first_process_that_does_not_come_is_a_clear_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"did not reach process 0 at {address}"):
            distributed._wait_for(find({}, address, 2, 1), timeout_s=0.0)
