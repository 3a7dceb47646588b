"""The processes of a run on many hosts: how they join, whatever launcher started them, and wait.

The same command runs on every host. Who takes part is read from flags, or from what the launcher
left in the environment; the table `LAUNCHERS` is asked in its order.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from crossdim_jax.errors import ConfigError
from crossdim_jax.runtime import stop
from crossdim_jax.text import for_stream

TIMEOUT_S = 300  # for all processes to have come
# For all to have finished: the first goes on by itself, with scores and the report.
SHUTDOWN_TIMEOUT_S = 7 * 24 * 3600


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, and which of them this is.

    Attributes:
      launcher: who started them, for messages.
      coordinator: HOST:PORT at which process 0 listens; None: jax finds all four out itself.
      processes: how many there are.
      process: index of this one.
      local_device: the only device of its host that this process uses; None for all that it sees.
    """

    launcher: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    local_device: int | None = None


def start(
    coordinator: str = "", processes: int | None = None, process: int | None = None
) -> Cluster | None:
    """Joins the other processes, when the arguments or the environment say there are some.

    Args:
      coordinator: HOST:PORT of process 0; "" to find it in the environment.
      processes, process: their number and the index of this one; needed with `coordinator` unless
        the environment says them.

    Returns:
      what was found; None for a process on its own.

    Raises ConfigError if something is missing, or process 0 cannot be reached.
    """
    cluster = find(os.environ, coordinator, processes, process)
    if cluster is None:
        return None
    timeouts = {
        "initialization_timeout": TIMEOUT_S,
        "shutdown_timeout_seconds": SHUTDOWN_TIMEOUT_S,
    }
    sys.excepthook = _leave_at_once
    # Its own handler of SIGTERM would take the signal from `stop`. It cannot replace it: Orbax asks
    # it too, with numbers of its own, and only the very number that was agreed on gets a yes.
    with contextlib.suppress(AttributeError):  # should a version of jax have no such service
        jax.config.update("jax_enable_preemption_service", False)
    if cluster.coordinator is None:
        jax.distributed.initialize(**timeouts)
    else:
        if cluster.process > 0:
            _wait_for(cluster)
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            local_device_ids=cluster.local_device,
            cluster_detection_method="deactivate",
            **timeouts,
        )
    if jax.process_count() > 1:
        stop.share(Notes())
    return cluster


class Notes:
    """`stop.Notes` in the key-value store of jax's distributed runtime, which process 0 serves."""

    FOLDER = "crossdim_jax"

    def __init__(self):
        from jax._src import distributed  # jax has no public name for it

        self._client = distributed.global_state.client
        self.index, self.count = jax.process_index(), jax.process_count()

    def put(self, name: str, text: str) -> None:
        """Writes a note; one that cannot be written is lost, as process 0 is."""
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"{self.FOLDER}/{name}", text or "-", allow_overwrite=True)

    def all(self, folder: str) -> dict[str, str]:
        """The notes under `folder/`, by their full names."""
        with contextlib.suppress(RuntimeError):  # also jax's, if there is none
            return dict(self._client.key_value_dir_get(f"{self.FOLDER}/{folder}/"))
        return {}


def wait_for_all(what: str) -> None:
    """Returns once every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def say(text: str) -> None:
    """Prints on the first process."""
    if jax.process_index() == 0:
        print(for_stream(text, sys.stdout), flush=True)


def give_up(message: str) -> NoReturn:
    """Ends this process with status 1 and a message on stderr.

    One of several leaves at once: the others wait for it in the middle of something, and would for
    ever if it waited in turn for them to finish.
    """
    stop.hold()
    message = for_stream(message, sys.stderr)
    if jax.distributed.is_initialized():
        print(message, file=sys.stderr, flush=True)
        os._exit(1)
    sys.exit(message)


def _leave_at_once(kind, error, traceback) -> None:
    stop.hold()
    sys.__excepthook__(kind, error, traceback)
    sys.stderr.flush()
    os._exit(1)


def find(
    environment: Mapping[str, str],
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
) -> Cluster | None:
    """Cluster that arguments and environment describe; see `start`."""
    environment = dict(environment)
    if processes is not None:
        environment["JAX_NUM_PROCESSES"] = str(processes)
    if process is not None:
        environment["JAX_PROCESS_ID"] = str(process)
    if coordinator:
        environment["JAX_COORDINATOR_ADDRESS"] = coordinator
    for name, ask in LAUNCHERS.items():
        cluster = ask(name, environment)
        if cluster is not None:
            return cluster if cluster.processes != 1 else None
    if coordinator:
        raise ConfigError("--coordinator needs --processes and --process as well")
    if processes not in (None, 1) or process not in (None, 0):  # each would train by itself
        raise ConfigError(
            f"--processes={processes} and --process={process} need --coordinator=HOST:PORT as well"
        )
    return None


def _explicit(name: str, environment: Mapping[str, str]) -> Cluster | None:
    fields = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if not all(environment.get(field) for field in fields):
        return None
    return _cluster(name, *(environment[field] for field in fields))


def _kubernetes(name: str, environment: Mapping[str, str]) -> Cluster | None:
    """An indexed Job or a JobSet of them; the manifest says who is the first, or the API does."""
    index = environment.get("JOB_COMPLETION_INDEX")
    if index is None:
        return None
    address, number = (
        environment.get(f"JAX_{x}") for x in ("COORDINATOR_ADDRESS", "NUM_PROCESSES")
    )
    if address and number:
        return _cluster(name, address if ":" in address else f"{address}:55527", number, index)
    if importlib.util.find_spec("kubernetes") is not None:
        return Cluster(name)
    if number == "1":
        return _cluster(name, "localhost:55527", 1, 0)
    raise ConfigError(
        "this is an indexed Kubernetes Job (JOB_COMPLETION_INDEX is set), but its manifest sets "
        "no JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES; set both as docs/scaling.md shows, or "
        "JAX_NUM_PROCESSES=1 if every pod is a run of its own"
    )


def _slurm(name: str, environment: Mapping[str, str]) -> Cluster | None:
    """A step started by srun. The variables of the job alone do not make one."""
    nodes, index = environment.get("SLURM_STEP_NODELIST"), environment.get("SLURM_PROCID")
    number = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS")
    if not (nodes and index and number):
        return None
    prefix, first = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes).groups()
    port = 61440 + int(environment.get("SLURM_JOB_ID", 0)) % 4096
    count = int(environment.get("SLURM_STEP_NUM_NODES") or 1)
    several = int(number) > count and environment.get("SLURM_LOCALID") is not None
    # A task that was given one GPU sees no other, and that one as its first.
    given = environment.get("CUDA_VISIBLE_DEVICES", "").count(",") == 0
    given = given and "CUDA_VISIBLE_DEVICES" in environment
    local = int(environment["SLURM_LOCALID"]) if several and not given else None
    address = environment.get("JAX_COORDINATOR_ADDRESS") or f"{prefix}{first or ''}:{port}"
    return _cluster(name, address, number, index, local)


def _open_mpi(name: str, environment: Mapping[str, str]) -> Cluster | None:
    number = environment.get("OMPI_COMM_WORLD_SIZE")
    if number is None or int(number) == 1:
        return None
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if not address:
        return Cluster(name)
    local = environment.get("OMPI_COMM_WORLD_LOCAL_RANK")
    alone = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or 1) == 1
    local = None if alone or local is None else int(local)
    return _cluster(name, address, number, environment["OMPI_COMM_WORLD_RANK"], local)


def _tpu(name: str, environment: Mapping[str, str]) -> Cluster | None:
    """A TPU host: its metadata know the others, also where the environment does not."""
    names = environment.get("TPU_WORKER_HOSTNAMES")
    if names is not None:  # GKE
        return Cluster(name) if "," in names or "MEGASCALE_NUM_SLICES" in environment else None
    wanted = "tpu" in environment.get("JAX_PLATFORMS", "tpu")
    devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if wanted and devices and importlib.util.find_spec("libtpu") is not None:
        return Cluster(name)
    return None


LAUNCHERS: dict[str, Callable[[str, Mapping[str, str]], Cluster | None]] = {
    "flags or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID": _explicit,
    "Kubernetes": _kubernetes,
    "SLURM": _slurm,
    "Open MPI": _open_mpi,
    "TPU": _tpu,
}


def _cluster(name, address, processes, process, local_device=None) -> Cluster:
    try:
        processes, process = int(processes), int(process)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}; expected whole numbers of processes") from error
    if not 0 <= process < processes:
        raise ConfigError(
            f"{name}: this is process {process} of {processes}; expected 0 to {processes - 1}"
        )
    if not re.fullmatch(r".+:\d+", address):
        raise ConfigError(f"{name}: the coordinator is {address!r}; expected HOST:PORT")
    return Cluster(name, address, processes, process, local_device)


def _wait_for(cluster: Cluster, timeout_s: float | None = None) -> None:
    """Returns once process 0 listens: the runtime, asked too early for too long, would abort."""
    host, port = cluster.coordinator.rsplit(":", 1)
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    until = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"process {cluster.process} of {cluster.processes} (as said by "
                    f"{cluster.launcher}) did not reach process 0 at {cluster.coordinator} within "
                    f"{timeout_s:g} s ({error}). See that the same command was started on every "
                    "host and that this host can connect to that port"
                ) from error
        time.sleep(0.2)
