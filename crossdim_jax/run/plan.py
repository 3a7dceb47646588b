"""Plan of a training before it starts: memory of a device, what fits into it, and time.

Memory is what the compiler says of the program that it made: arrays that go in, arrays that come
out, and temporaries at their peak. What fits is found by compiling, from an estimate that takes the
temporaries to grow with the number of voxels.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax.data import cache
from crossdim_jax.errors import ConfigError
from crossdim_jax.inference import sliding_window
from crossdim_jax.run import cases as run_cases
from crossdim_jax.run import initial_state
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime import sharding
from crossdim_jax.storage.files import duration
from crossdim_jax.training.state import TrainState, variables
from crossdim_jax.training.step import JitStep, TrainStep

GIB = 2**30
TIMED_STEPS = 5
ATTEMPTS = 3  # compilations of an answer that turns out not to fit


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device that a compiled program needs."""

    arrays: int  # in and out, those that share a buffer counted once
    temporaries: int

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.arrays + self.temporaries

    @classmethod
    def of_step(cls, compiled: TrainStep) -> "Memory":
        """Memory of the part of a step that needs more."""
        parts = (compiled.gradient, compiled.update)
        return max(map(cls.of, parts), key=lambda memory: memory.total)

    @classmethod
    def of(cls, compiled: Any) -> "Memory":
        """Memory of a program, as the compiler says."""
        stats = compiled.memory_analysis()
        arrays = stats.argument_size_in_bytes + stats.output_size_in_bytes
        return cls(arrays - stats.alias_size_in_bytes, stats.temp_size_in_bytes)

    def __str__(self):
        return (
            f"{self.total / GIB:.2f} GiB (arrays {self.arrays / GIB:.2f}, "
            f"temporaries {self.temporaries / GIB:.2f})"
        )


def run(experiment: Experiment, *, budget_gib: float | None = None) -> str:
    """Compiles and measures a few steps; trains nothing, writes no run.

    Args:
      experiment: with an empty data root, steps are timed on random numbers.
      budget_gib: memory of a device; None for what the device has.

    Returns:
      the account, lines of text.

    Raises ConfigError if the budget is no amount of memory.
    """
    if budget_gib is not None and not 0 < budget_gib < 2**30:
        raise ConfigError(
            f"--budget_gib={budget_gib}: expected the GiB of memory of a device, a number above 0"
        )
    budget = memory_of_device() if budget_gib is None else int(budget_gib * GIB)
    patch, options = experiment.data.patch, experiment.training
    cases = run_cases.prepare_cases(experiment)[1] if experiment.data.root else []
    steps = run_cases.steps_per_epoch(experiment, cases) if cases else 1
    optimizer = experiment.optimizer(steps)
    state, _ = initial_state.first_state(experiment, optimizer, [], None)
    step = experiment.train_step(optimizer)
    compiled = _compile(experiment, step, state, patch, options.batch_size)
    memory = Memory.of_step(compiled)
    devices = experiment.mesh.devices
    lines = [
        f"plan for {devices.size} x {devices.flat[0].device_kind}, {budget / GIB:.1f} GiB each, "
        f"patch {patch}, batch {options.batch_size}, accumulate {options.accumulate}",
        f"training step        {memory} a device{_verdict(memory, budget)}",
        f"inference            {_inference(experiment, state, cases, budget)}",
        *fitting(experiment, step, state, memory, budget),
    ]
    if cases:
        batches = iter(run_cases.train_data(experiment, cases, options.batch_size))
    else:
        batches = random_batches(experiment)
    seconds = step_seconds(experiment, compiled, state, batches)
    epoch = "not known: config.data.root is empty"
    if cases:
        epoch = (
            f"{duration(steps * seconds)} for {steps} steps; {options.epochs} epochs "
            f"{duration(steps * seconds * options.epochs)}, validation not counted"
        )
    speed = options.batch_size * np.prod(patch, dtype=float) / seconds
    lines.append(
        f"a step               {seconds:.3f} s, the median of {TIMED_STEPS}: {speed:.3g} voxels a "
        "second"
    )
    lines.append(f"an epoch             {epoch}")
    return "\n".join(lines)


def memory_of_device() -> int:
    """Bytes of a device; a CPU's devices share those of the host."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return limit
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host // jax.local_device_count()


def fitting(
    experiment: Experiment, step: JitStep, state: TrainState, memory: Memory, budget: int
) -> list[str]:
    """The largest batch at the config's patch, and the largest patch at its batch, that fit.

    Both are compiled; `memory` is that of the config's own.
    """
    patch, batch = experiment.data.patch, experiment.training.batch_size
    unit = experiment.mesh.shape["data"] * experiment.training.accumulate
    most = int((budget / max(memory.temporaries, 1) + 1) * batch) // unit
    batches = [(patch, n * unit) for n in range(most, 0, -1)]
    sizes = [(size, batch) for size in _patches(experiment)]
    lines = []
    for label, candidates in (("largest batch", batches), ("largest patch", sizes)):
        found = _largest(
            candidates,
            lambda size, n: Memory.of_step(_compile(experiment, step, state, size, n)),
            ((patch, batch), memory),
            budget,
        )
        lines.append(f"{label:<21}{found or 'none fits'}")
    return lines


def _largest(candidates, measure, known, budget) -> str | None:
    """The first candidate that fits, tried where a straight line through what is known says so."""
    start, memory = known
    certain = f"patch {start[0]}, batch {start[1]}: {memory}"
    certain = certain if start in candidates and memory.total <= budget else None
    voxels = {c: float(np.prod(c[0], dtype=float) * c[1]) for c in [*candidates, start]}
    slope = memory.temporaries / voxels[start]
    for _ in range(ATTEMPTS):
        expected = {c: memory.total + slope * (voxels[c] - voxels[start]) for c in candidates}
        candidates = [c for c in candidates if expected[c] <= budget]
        if not candidates:
            return certain
        best = candidates.pop(0)
        needs = memory if best == start else measure(*best)
        if needs.total <= budget:
            return f"patch {best[0]}, batch {best[1]}: {needs}"
        if voxels[best] != voxels[start]:
            slope = max(slope, (needs.total - memory.total) / (voxels[best] - voxels[start]))
    return certain


def random_batches(experiment: Experiment) -> Iterator[Mapping[str, np.ndarray]]:
    """Endless batches of random numbers, always the same: their input costs nothing."""
    challenge = experiment.challenge
    rng = np.random.default_rng(0)
    shape = (experiment.training.batch_size // jax.process_count(), *experiment.data.patch)
    k = len(challenge.classes)
    batch = {
        "image": rng.normal(size=(*shape, len(challenge.modalities))).astype(np.float32),
        "target": rng.integers(0, 2, (*shape, k)).astype(np.uint8),
        "weights": np.ones((shape[0], k), np.float32),
    }
    while True:
        yield batch


def step_seconds(
    experiment: Experiment, compiled: Any, state: TrainState, batches: Iterator
) -> float:
    """Median seconds of a step with its input, one dispatched while the one before runs."""
    times, before = [], None
    for _ in range(TIMED_STEPS + 2):  # the first two fill the buffers
        arrays = {name: array for name, array in next(batches).items() if name != "id"}
        state, metrics = compiled(state, sharding.shard_batch(arrays, experiment.mesh))
        if before is not None:
            jax.block_until_ready(before)
        before = metrics
        times.append(time.monotonic())
    jax.block_until_ready(before)
    times.append(time.monotonic())
    return statistics.median(np.diff(times[2:]).tolist())


def _compile(
    experiment: Experiment, step: JitStep, state: TrainState, patch: Sequence[int], batch: int
) -> TrainStep:
    challenge, mesh = experiment.challenge, experiment.mesh
    shapes = {
        "image": ((batch, *patch, len(challenge.modalities)), jnp.float32),
        "target": ((batch, *patch, len(challenge.classes)), jnp.uint8),
        "weights": ((batch, len(challenge.classes)), jnp.float32),
    }
    arrays = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batched(mesh, len(shape)))
        for name, (shape, dtype) in shapes.items()
    }
    return step.compile(sharding.abstract_like(state), arrays)


def _inference(
    experiment: Experiment, state: TrainState, cases: Sequence[cache.CachedCase], budget: int
) -> str:
    predict, abstract = experiment.predictor(flipped=False), sharding.abstract_like(state)
    channels = len(experiment.challenge.modalities)
    if isinstance(predict, sliding_window.SlidingWindow):
        compiled = predict.compiled(variables(abstract), channels)
        what = f"{predict.window_batch} windows of {predict.patch} at a time"
    else:
        largest = max((case.shape for case in cases), key=np.prod, default=predict.window.patch)
        try:
            compiled = predict.compiled(variables(abstract), largest, channels)
        except ConfigError as error:
            return f"in windows: {error}"
        what = f"a whole volume of {largest}"
    memory = Memory.of(compiled)
    return f"{memory} a device{_verdict(memory, budget)}: {what}"


def _verdict(memory: Memory, budget: int) -> str:
    return "" if memory.total <= budget else f", which is more than {budget / GIB:.1f} GiB"


def _patches(experiment: Experiment) -> list[tuple[int, ...]]:
    """Patches to try, the largest first: of the config's shape, in steps that the network takes."""
    patch, depth = experiment.data.patch, experiment.mesh.shape["depth"]
    found = []
    for tenths in range(40, 1, -1):
        size = tuple(max(32, round(n * tenths / 10 / 32) * 32) for n in patch)
        if size in found or size[0] % depth:
            continue
        try:
            experiment.model.check_size(size)
        except ValueError:
            size = (patch[0], *size[1:])  # a network of one depth
            try:
                experiment.model.check_size(size)
            except ValueError:
                continue
        if size not in found:
            found.append(size)
    return found
