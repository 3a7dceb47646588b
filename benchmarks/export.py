"""`python -m benchmarks.export MODEL CONFIG WORKDIR CASES`: one case by ONNX Runtime and by JAX.

The first case of the folder CASES, prepared once, goes through the same windows on both sides: the
model folder that `--mode=export` made of the run, and the run itself. Probabilities and labels are
compared first, then both take turns with the same threads; reading and writing files is the same
code and not timed. Exit status 1 if more than one voxel in 100,000 has another label.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import machine
from crossdim_jax.export import folder, runner
from crossdim_jax.inference.windows import flip_axes
from crossdim_jax.run import config, ensemble, experiment
from crossdim_jax.runtime import compile_cache

ALIKE = 1e-5  # of the voxels may have another label


def check_windows(job: experiment.Experiment, model: folder.Model) -> None:
    """Ends the program unless the run predicts by the model's windows."""

    def of(windows) -> tuple:
        flips = flip_axes(windows.flips, len(windows.patch))
        return tuple(windows.patch), windows.overlap, flips, windows.window_batch

    ours, exported = of(job.predictor(flipped=True)), of(model.windows)
    if ours != exported:
        sys.exit(f"the run predicts by windows {ours}, the model by {exported}: export it anew")


def measure(job: experiment.Experiment, model: folder.Model, cases: Path, rounds: int) -> dict:
    """Seconds of a case by side and round, those of the first call, and how far they are apart."""
    challenge = model.challenge
    case = challenge.load(challenge.cases(cases, labelled=False)[0])
    prepared = challenge.prepare(case)
    ours, weights = ensemble.predictor(job)
    sides = {"JAX": ours, "ONNX Runtime": runner.predictor(model, threads=machine.cores())}
    first, found, seconds = {}, {}, {name: [] for name in sides}
    for name, predict in sides.items():
        started = time.perf_counter()
        found[name] = np.asarray(predict(prepared.image))
        first[name] = time.perf_counter() - started
    labels = [challenge.finish(probabilities, prepared) for probabilities in found.values()]
    for _ in range(rounds):
        for name, predict in sides.items():
            started = time.perf_counter()
            predict(prepared.image)
            seconds[name].append(time.perf_counter() - started)
    ours, theirs = found.values()
    return {
        "case": prepared.image.shape,
        "weights": weights,
        "first": first,
        "seconds": seconds,
        "apart": float(np.abs(ours - theirs).max()),
        "differ": int((labels[0] != labels[1]).sum()),
        "voxels": labels[0].size,
    }


def main() -> int:
    """Measures and prints; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__)
    parser.add_argument("model", type=Path, help="folder written by --mode=export")
    parser.add_argument("config", help="of the run, such as configs/brats_dxnet.py:demo")
    parser.add_argument("workdir", help="run folder")
    parser.add_argument("cases", type=Path, help="folder of cases; the first is predicted")
    parser.add_argument("--rounds", type=int, default=5, help="of each side")
    options, overrides = parser.parse_known_args()
    compile_cache.cache_compiled_programs()
    job = experiment.build(config.read(options.config, overrides), options.workdir, trains=False)
    job, model, others = job.for_inference(), folder.read(options.model), machine.Others()
    check_windows(job, model)
    result = measure(job, model, options.cases, options.rounds)
    jax_s, onnx_s = (statistics.median(values) for values in result["seconds"].values())
    print(
        f"{result['case']} in windows of {model.windows.patch}, {result['weights']}, "
        f"{machine.cores()} cores of {jax.devices()[0].device_kind}; others used "
        f"{others.share() or 0:.0%} of them\n"
        f"{result['differ']} of {result['voxels']} voxels have another label, probabilities are at "
        f"most {result['apart']:.1e} apart\n"
        f"ONNX Runtime {onnx_s:.2f} s, JAX {jax_s:.2f} s, ratio {onnx_s / jax_s:.2f} (median of "
        f"{options.rounds}); the first call {result['first']['ONNX Runtime']:.2f} s and "
        f"{result['first']['JAX']:.2f} s with compiling"
    )
    return 0 if result["differ"] <= ALIKE * result["voxels"] else 1


if __name__ == "__main__":
    sys.exit(main())
