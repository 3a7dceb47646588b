"""`python -m benchmarks.input`: does reading keep up with the training step?

Steps per second of DX-Net's training step on patches cut from memory-mapped cases as training cuts
them, against the same step on one batch that lies in memory. Both sides take turns in one process;
the ratio is that of the medians. Exit status 1 if it is below 0.95.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax

from crossdim_jax import challenges, losses, models, ops
from crossdim_jax.challenges.brats import phantom
from crossdim_jax.data import cache, pipeline
from crossdim_jax.runtime import sharding
from crossdim_jax.training import initialise, optim
from crossdim_jax.training import step as train

ENOUGH = 0.95
CASES, SHAPE = 6, (140, 172, 140)  # brain crops of BraTS are about that large


def measure(size: int, batch: int, rounds: int, steps: int, threads: int) -> dict:
    """Seconds of a step by round and side, and the ratio of their medians.

    Args:
      size: of the cubic patch.
      batch: samples in a step.
      rounds: of each side.
      steps: in a round.
      threads: that read.
    """
    challenge, mesh = challenges.get("phantom"), sharding.make_mesh(1)
    model = models.build("dxnet", out_channels=3, ops=ops.choose("auto"))
    optimizer = optim.make()
    state = initialise.init_state(model, optimizer, (1, *(size,) * 3, 4), mesh, seed=0, say=None)
    step = train.jit_step(train.make_train_step(model, optimizer, losses.dice_bce, seed=0), mesh)
    with tempfile.TemporaryDirectory() as folder:
        phantom.generate(Path(folder) / "cases", CASES, shape=SHAPE)
        files = challenge.cases(Path(folder) / "cases", labelled=True)
        cached = cache.build(challenge, files, Path(folder) / "cache", num_processes=2)
        real = iter(
            pipeline.train_dataset(
                cached,
                challenge,
                patch=(size,) * 3,
                batch_size=batch,
                seed=0,
                num_threads=threads,
            )
        )
        held = next(real)
        sides = {"real": lambda: next(real), "memory": lambda: held}
        seconds = {name: [] for name in sides}
        for turn in range(rounds + 1):  # the first compiles and fills the buffers
            for name, take in sides.items():
                started, before = time.perf_counter(), None
                for _ in range(steps):  # as the loop: one step is dispatched while another runs
                    arrays = {k: v for k, v in take().items() if k != "id"}
                    state, metrics = step(state, sharding.shard_batch(arrays, mesh))
                    jax.block_until_ready(before)
                    before = metrics
                jax.block_until_ready(before)
                if turn:
                    seconds[name].append((time.perf_counter() - started) / steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "patch": size,
        "batch": batch,
        "threads": threads,
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "seconds": seconds,
        "ratio": medians["memory"] / medians["real"],
    }


def main() -> int:
    """Measures, prints, writes JSON; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input", description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="of the cubic patch")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="of each side")
    parser.add_argument("--steps", type=int, default=5, help="in a round")
    parser.add_argument("--threads", type=int, default=2, help="that read")
    parser.add_argument("--out", default="build/bench_input.json")
    options = parser.parse_args()
    result = measure(options.size, options.batch, options.rounds, options.steps, options.threads)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=1))
    real, memory = (statistics.median(result["seconds"][side]) for side in ("real", "memory"))
    print(
        f"input, patch {options.size}^3, batch {options.batch}, {options.threads} threads, "
        f"{result['cores']} cores, {result['device']}: {1 / real:.2f} steps/s from the cache, "
        f"{1 / memory:.2f} from memory, ratio {result['ratio']:.3f} (at least {ENOUGH})"
    )
    return 0 if result["ratio"] >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
