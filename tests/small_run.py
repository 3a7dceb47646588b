"""A whole small training in a process of its own, to be killed, or joined by others.

    python -m tests.small_run '{"workdir": ..., "cases": ..., "cache": ..., "epochs": ...}'

What `launch.py` runs, on a config with a network of two convolutions: phantoms from a cache,
lookahead, dropout, validation with the sliding window, evaluation; no report. Prints "ready" before
it trains; at the end of the training writes `final.npz` (all of the state, and the best score) and,
in every process, `seen_<process>_of_<processes>.jsonl`: number and cases of each batch.
"""

import contextlib
import ctypes
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

if __name__ == "__main__":
    from crossdim_jax.runtime import stop

    stop.install()

# ruff: noqa: E402
import jax
import numpy as np

from configs import brats_dxnet
from crossdim_jax.challenges.brats import phantom
from crossdim_jax.errors import CrossdimError
from crossdim_jax.run import cases as run_cases
from crossdim_jax.run import experiment, train
from crossdim_jax.runtime import distributed
from tests import toy

BATCH, CASES, STEPS_PER_EPOCH = 4, 10, 2
ROOT = Path(__file__).resolve().parents[1]


def config(cases, cache, epochs, **fields):
    """An experiment that trains in seconds: eight cases, and two that are held out."""
    result = brats_dxnet.get_config("debug").copy_and_resolve_references().unlock()
    del result.phantoms, result.model
    result.model = {"name": "toy", "rate": 0.2}
    fields = {
        "data.root": str(cases),
        "data.cache": str(cache),
        "data.patch": (16, 16, 16),
        "data.foreground": 0.0,
        "data.num_processes": 0,
        "data.split.kind": "fixed",
        "data.split.validation": ("Phantom_008", "Phantom_009"),
        "optim.learning_rate": 1e-2,
        "optim.constant_epochs": 10**6,
        "optim.sync_period": 3,
        "train.batch_size": BATCH,
        "train.epochs": epochs,
        "train.validate_from_dice": 0.0,
        "train.validate_every_epochs": 3,
        "train.log_every_steps": 3,
        "inference.window_batch": 8,
    } | fields
    result.update_from_flattened_dict(fields)
    return result.lock()


class Watched:
    """The pipeline's batches, noting what it gives; `before(n)` is called before the n-th."""

    def __init__(self, dataset, path, before):
        self.iterator, self.path, self.before, self.number = iter(dataset), path, before, 0
        self.get_state, self.set_state = self.iterator.get_state, self.iterator.set_state

    def __iter__(self):
        return self

    def __next__(self):
        self.number += 1
        self.before(self.number)
        batch = next(self.iterator)
        with self.path.open("a") as file:
            file.write(json.dumps([self.get_state(), [str(name) for name in batch["id"]]]) + "\n")
        return batch


def deaf(*_):
    """Waits in C, without Python's lock, as for a compiler: for a lock that is never given back."""
    print("deaf", flush=True)
    c, lock = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    c.pthread_mutex_init(lock, None)
    c.pthread_mutex_lock(lock)
    c.pthread_mutex_lock(lock)


def fill(disk):
    """Leaves no room on a disk; without one, allows files of some kilobytes only."""
    if disk is None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        return
    with (Path(disk) / "filler").open("wb", buffering=0) as file:
        for size in (65536, 512):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def watch(workdir, *, seconds=0.0, deaf_at=None, full_after=None, disk=None):
    """Changes what training calls, so that it can be followed and met with what befalls it.

    Args:
      seconds: that each batch takes.
      deaf_at: where no signal is heard: before the "step" or in the "validation".
      full_after: step after which, once it is saved, the `disk` is full, see `fill`.
    """
    here, count = jax.process_index(), jax.process_count()
    train_data, fit = run_cases.train_data, train.loop.fit

    def before(number):
        time.sleep(seconds)
        if full_after is not None and number == full_after + 2:
            while not (workdir / "checkpoints" / str(full_after)).exists():
                time.sleep(0.01)
            fill(disk)

    def watched_data(*args, **options):
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / f"seen_{here}_of_{count}.jsonl"
        return Watched(train_data(*args, **options), path, before)

    def watched_fit(*args, **options):
        print("ready", flush=True)
        if deaf_at == "step":
            deaf()
        result = fit(*args, **options)
        if here == 0:
            leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(result.state))[0]
            arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
            best = np.array([result.best_score, result.best_step])
            np.savez(workdir / "final.npz", best=best, **arrays)
        return result

    run_cases.train_data, train.loop.fit = watched_data, watched_fit
    train.evaluate.page.write = lambda workdir, *_: workdir  # figures take most of the time
    if deaf_at == "validation":
        experiment.Experiment.predictor = lambda *_, **__: deaf


def reverse_devices():
    """Meshes whose rows are not in the order of the processes, as on some topologies."""
    make = jax.make_mesh
    jax.make_mesh = lambda *args, devices, **options: make(*args, devices=devices[::-1], **options)


def main(workdir, cases, cache, epochs, *, reverse=False, **watching):
    """Trains, as launch.py does."""
    if reverse:
        reverse_devices()
    with toy.registered():
        made = experiment.build(config(cases, cache, epochs), workdir)
        watch(Path(workdir), **watching)
        train.run(made)


def make_cases(folder):
    """What `main` takes as `cases`."""
    phantom.generate(folder, CASES, shape=(24, 26, 24))
    return folder


def environment(folder, devices=1):
    """Of a process: so many CPU devices, and programs compiled once for all of them."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",  # compiles faster
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / f"compiled_{devices}"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


# Runs this file for each line of arguments, in a copy of a process that has its imports already;
# says how a copy ended to each line that is its number.
SERVER = """
import gc, json, os, runpy, sys
from tests import small_run

gc.freeze()  # copies share it, and do not go through it again
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, int):
        print(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]), flush=True)
        continue
    argument, *logs = asked
    child = os.fork()
    if child == 0:
        for number, log in enumerate(logs, 1):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["small_run.py", argument]
        runpy.run_path(small_run.__file__, run_name="__main__")
        sys.exit()
    print(child, flush=True)
"""


class Copy:
    """A process of the server, with the methods of `subprocess.Popen` that its users call."""

    def __init__(self, server, argument, folder):
        self.server, self.folder, self.returncode = server, folder, None
        os.mkfifo(folder / "out")
        self.pid = self.ask([argument, str(folder / "out"), str(folder / "err")])
        self.stdout = (folder / "out").open()

    def ask(self, question):
        print(json.dumps(question), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def send_signal(self, number):
        os.kill(self.pid, number)

    def communicate(self, timeout=60):
        """Its output and errors once it has ended; it is killed after so many seconds."""
        end = threading.Timer(timeout, self.send_signal, [signal.SIGKILL])
        end.start()
        with self.stdout:
            out = self.stdout.read()
        end.cancel()
        if self.returncode is None:
            self.returncode = self.ask(self.pid)
        return out, (self.folder / "err").read_text()


@contextlib.contextmanager
def copies(folder):
    """Gives what `begin` takes as `start`: processes without the seconds that the imports take."""
    numbers = itertools.count()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        env=environment(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def start(argument):
            logs = folder / "logs" / str(next(numbers))
            logs.mkdir(parents=True)
            return Copy(server, argument, logs)

        yield start


def begin(folder, name, steps, start=None, **settings):
    """Starts `main` for the run folder `name` in `folder`, which holds its cases."""
    settings = {
        "workdir": str(folder / name),
        "cases": str(folder / "cases"),
        "cache": str(folder / "cache"),
        "epochs": steps // STEPS_PER_EPOCH,
    } | settings
    if start:
        return start(json.dumps(settings))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.small_run", json.dumps(settings)],
        cwd=ROOT,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, word):
    """Returns once a process has printed a line."""
    while (line := process.stdout.readline()) != f"{word}\n":
        assert line, process.communicate()[1]


def final(workdir):
    """The arrays of `final.npz`."""
    with np.load(Path(workdir) / "final.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def lines(workdir):
    """The metrics file without what depends on the clock."""
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "images_per_s")}
        for record in toy.read_metrics(workdir)
    ]


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    try:
        distributed.start(*settings.pop("join", ()))
        main(**settings)
    except CrossdimError as error:
        distributed.give_up(f"error: {error}")
