"""A whole small training in a process of its own, to be killed, or joined by others.

    python -m tests.small_run '{"workdir": ..., "cases": ..., "cache": ..., "total_steps": ...}'

Phantoms from a cache through the real pipeline, lookahead, dropout, validation with the sliding
window. Prints "ready" before it trains; at the end writes `final.npz` (all of the state, and the
best score) and, in every process, `seen_<process>_of_<processes>.jsonl`: step and cases of each
batch.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    from crossdim_jax.runtime import stop

    stop.install()

# ruff: noqa: E402
import jax
import numpy as np

from crossdim_jax import challenges, losses
from crossdim_jax.challenges.brats import phantom
from crossdim_jax.data import cache, pipeline
from crossdim_jax.errors import CrossdimError
from crossdim_jax.inference.sliding_window import SlidingWindow
from crossdim_jax.runtime import distributed, sharding
from crossdim_jax.storage import run_folder
from crossdim_jax.training import optim
from crossdim_jax.training import step as train
from crossdim_jax.training.loop import fit
from crossdim_jax.training.validation import Validation
from tests import toy

PATCH, BATCH, CASES = (16, 16, 16), 4, 6
ROOT = Path(__file__).resolve().parents[1]


class Watched:
    """The pipeline's iterator, slowed down, noting what it gives."""

    def __init__(self, dataset, seconds, path):
        self.iterator, self.seconds, self.path = iter(dataset), seconds, path
        self.get_state, self.set_state = self.iterator.get_state, self.iterator.set_state

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(self.seconds)
        batch = next(self.iterator)
        with self.path.open("a") as file:
            file.write(json.dumps([self.get_state(), [str(name) for name in batch["id"]]]) + "\n")
        return batch


def deaf():
    """Minutes in C, without Python's lock, as in a compiler."""
    print("deaf", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)


def main(workdir, cases, cache_root, total_steps, *, seconds=0.0, devices=1, depth=1, deaf_at=None):
    """Trains; with `deaf_at` it does not hear, before the "step" or in the "validation"."""
    workdir, challenge = Path(workdir), challenges.get("phantom")
    here, count = jax.process_index(), jax.process_count()
    cached = cache.build(
        challenge,
        challenge.cases(cases, labelled=True),
        cache_root,
        share=(here, count),
        wait=lambda: distributed.wait_for_all("cases"),
    )
    mesh = sharding.make_mesh(-1, depth)
    model = toy.ToyNet(rate=0.2, classes=3)
    optimizer = optim.make(learning_rate=1e-2, sync_period=3)
    state = train.init_state(model, optimizer, (1, *PATCH, 4), mesh, seed=0, say=None)
    step = train.make_train_step(model, optimizer, losses.dice_bce, seed=0)
    data = pipeline.train_dataset(
        cached[:4], challenge, patch=PATCH, batch_size=BATCH, seed=3,
        process_index=sharding.process_place(mesh), process_count=count,
    )  # fmt: skip
    window = SlidingWindow(model.apply, PATCH, window_batch=8, sharding=sharding.batched(mesh))
    workdir.mkdir(parents=True, exist_ok=True)
    validation = Validation(cached[4:], window, challenge.encode, from_dice=0.0, every_epochs=3)
    batches = Watched(data, seconds, workdir / f"seen_{here}_of_{count}.jsonl")
    print("ready", flush=True)
    if deaf_at == "step":
        deaf()
    if deaf_at == "validation":
        validation = dataclasses.replace(validation, predict=lambda *_: deaf())
    result = fit(
        state, train.jit_step(step, mesh), batches, workdir=workdir, mesh=mesh,
        regions=challenge.foreground, total_steps=total_steps, steps_per_epoch=2,
        validation=validation, log_every_steps=3, progress=False,
    )  # fmt: skip
    if here == 0:
        leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(result.state))[0]
        arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        best = np.array([result.best_score, result.best_step])
        np.savez(workdir / "final.npz", best=best, **arrays)


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


def begin(folder, name, steps, **settings):
    """Starts `main` for the run folder `name` in `folder`, which holds its cases."""
    settings = {
        "workdir": str(folder / name),
        "cases": str(folder / "cases"),
        "cache_root": str(folder / "cache"),
        "total_steps": steps,
    } | settings
    return subprocess.Popen(
        [sys.executable, "-m", "tests.small_run", json.dumps(settings)],
        cwd=ROOT,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
        with run_folder.only_process(f"{settings['workdir']}", f"training_{jax.process_index()}"):
            main(**settings)
    except CrossdimError as error:
        distributed.give_up(f"error: {error}")
