"""`python -m benchmarks.gpu`: what a project that was made on CPUs has to know of a GPU, at once.

In this order, each result written as it comes: the device; every operation in float32 and bfloat16
against float64 on the CPU; the forms of every operation side by side; where the time of a training
step goes; whether a resume is exact to the bit; whole networks in bfloat16 against PyTorch's best;
peak memory. Needs jax, flax, optax and torch. On a CPU it is a rehearsal: --size=32.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.__main__ import Row, memory_rows, network_rows, prepare

MODES = ("lax", "fast")
DTYPES = ("float32", "bfloat16")
SMALL = 32  # of the cube on which operations are compared
ROUNDS = 5
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="of the cube, a multiple of 32 (128)")
    parser.add_argument("--out", default="build/gpu.jsonl", help="one result a line")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="what is begun later is left out"
    )
    parser.add_argument("--only", default="", help="parts, with commas; see the order above")
    parser.add_argument("--compile-limit-s", type=float, default=60.0, help="per torch.compile")
    return parser.parse_args()


def device(options: argparse.Namespace) -> Iterator[Row]:
    """Device, versions and memory."""
    import flax
    import jax
    import optax
    import torch

    from benchmarks import machine

    found = jax.devices()[0]
    yield {
        "device": found.device_kind,
        "memory_gib": ((found.memory_stats() or {}).get("bytes_limit") or 0) / 2**30,
        "torch_device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": {m.__name__: m.__version__ for m in (jax, flax, optax, torch)},
        "cuda": torch.version.cuda,
        "machine": machine.describe(),
    }


def equality(options: argparse.Namespace) -> Iterator[Row]:
    """Output and gradients of every operation, dtype and form, against float64 on the CPU."""
    from benchmarks import operations, timing

    for operation in operations.operations(SMALL):
        exact = _exact(operation)
        for dtype in DTYPES:
            for mode in MODES:
                arrays = operations.ours_of(operation, mode, dtype).arrays()
                error, tensor = timing.distance(arrays, exact)
                yield {
                    "operation": operation.name,
                    "dtype": dtype,
                    "mode": mode,
                    "error": error,
                    "tensor": tensor,
                    "equal": error <= timing.TOLERANCE[dtype],
                }


def _exact(operation: Any) -> dict[str, Any]:
    """An operation's output and gradients by XLA's own form in float64 on the CPU."""
    import jax

    from benchmarks import operations

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return operations.ours_of(operation, "lax", "float64").arrays()


def forms(options: argparse.Namespace) -> Iterator[Row]:
    """Milliseconds of every operation, forward and backward, in each form."""
    from benchmarks import operations, timing

    for dtype in reversed(DTYPES):
        for operation in operations.operations(options.size):
            row: Row = {"operation": operation.name, "dtype": dtype, "ms": {}}
            for mode in MODES:
                try:
                    contestant = operations.ours_of(operation, mode, dtype)
                    samples = timing.within(contestant, ROUNDS, 0.02, 2.0)
                    row["ms"][mode] = samples.summary()["median_ms"]
                except Exception as error:  # memory, a kernel that is not there
                    row.setdefault("failed", {})[mode] = timing.reason(error)
            row["best"] = min(row["ms"], key=row["ms"].get, default=None)
            yield row


def trace(options: argparse.Namespace) -> Iterator[Row]:
    """Share of each kernel in three training steps of DX-Net in bfloat16, the largest first."""
    import jax

    from benchmarks import ours

    contestant = ours.contestant("training step", options.size, "auto", "bfloat16")
    contestant.wait(contestant.step())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(3):
                result = contestant.step()
            contestant.wait(result)
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    spent: collections.Counter[str] = collections.Counter()
    for plane in data.planes:
        if plane.name.startswith("/device:"):
            for line in plane.lines:
                if line.name.startswith("Stream"):  # kernels; other lines sum them up again
                    for event in line.events:
                        spent[event.name] += event.duration_ns
    total = sum(spent.values())
    for name, ns in spent.most_common(40):
        yield {"kernel": name, "ms_per_step": ns / 3e6, "share": ns / total}
    if not total:
        yield {"none": "no kernel was traced: the profiler sees those of GPUs only"}


def resume(options: argparse.Namespace) -> Iterator[Row]:
    """Two and two training steps against four, bit by bit: as it is, and with XLA's flag."""
    for flags in ("", DETERMINISTIC):
        if flags and options.platform != "gpu":
            continue
        environment = {"XLA_FLAGS": " ".join(filter(None, [os.environ.get("XLA_FLAGS"), flags]))}
        command = [sys.executable, "-m", "benchmarks.gpu", f"--size={options.size}"]
        done = subprocess.run(
            [*command, "--only=steps"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=max(1.0, options.deadline - time.monotonic()),
        )
        lines = done.stdout.strip().splitlines()
        found = json.loads(lines[-1]) if done.returncode == 0 else {"failed": done.stderr[-500:]}
        yield {"flags": flags, **found}


def steps(options: argparse.Namespace) -> Row:
    """Number of values that differ between four steps, the same again, and two and two."""
    import jax
    import numpy as np

    from benchmarks import ours
    from crossdim_jax.runtime import sharding

    ingredients = ours.ingredients(options.size, "auto", "bfloat16", "dxnet")

    def advanced(state: Any, count: int) -> Any:
        for _ in range(count):
            state, _ = jitted(state, batch)
        return state

    def host(state: Any) -> Any:
        return jax.tree.map(np.asarray, state)

    jitted, state, batch = ours.training(*ingredients)
    everywhere = sharding.replicated(sharding.make_mesh(1, 1))
    start = host(state)
    half = host(advanced(state, 2))
    runs = [
        host(advanced(jax.device_put(from_, everywhere), count))
        for from_, count in ((start, 4), (start, 4), (half, 2))
    ]

    def differing(a: Any, b: Any) -> int:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return sum(int(np.sum(x != y)) for x, y in pairs)

    return {
        "values": sum(x.size for x in jax.tree.leaves(start)),
        "differ_again": differing(*runs[:2]),
        "differ_resumed": differing(runs[0], runs[2]),
    }


def networks(options: argparse.Namespace) -> Iterator[Row]:
    """Forward, gradient and training step of whole networks in bfloat16, against PyTorch's best."""
    from benchmarks import timing

    def measure(case: Any) -> Row | None:
        if time.monotonic() > options.deadline:
            return None
        try:
            return timing.measure(
                case, mode="auto", against="fast", rounds=ROUNDS, limit_s=options.compile_limit_s
            )
        except Exception as error:
            failed.append({"name": case.name, "failed": timing.reason(error)})
            return None

    failed: list[Row] = []
    asked = argparse.Namespace(only="", size=options.size)
    for row in network_rows(asked, ["bfloat16"], measure):
        options.rows.append(row)
        yield row
    yield from failed


def memory(options: argparse.Namespace) -> Iterator[Row]:
    """Peak memory of a training step of DX-Net in bfloat16, ours and PyTorch's."""
    asked = argparse.Namespace(only="", size=options.size, ops="auto")
    yield from memory_rows(asked, ["bfloat16"], options.rows)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    part.__name__: part for part in (device, equality, forms, trace, resume, networks, memory)
}


def main() -> None:
    """Runs the parts that there is time for; each result is a line of JSON."""
    options = arguments()
    options.deadline = time.monotonic() + 60 * options.minutes
    prepare("auto")
    import jax

    options.platform, options.rows = jax.default_backend(), []
    if options.only == "steps":
        print(json.dumps(steps(options)))
        return
    chosen = [name.strip() for name in options.only.split(",") if name.strip()] or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        sys.exit(f"--only={','.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:

        def write(part: str, row: Row) -> None:
            text = json.dumps({"part": part, **row})
            print(text[:300], flush=True)
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

        for name in chosen:
            started = time.monotonic()
            try:
                for row in PARTS[name](options):
                    write(name, row)
                    if time.monotonic() > options.deadline:
                        write(name, {"cut_off": f"{options.minutes:g} minutes are over"})
                        return
            except Exception as error:  # the other parts must not be lost with this one
                write(name, {"failed": f"{type(error).__name__}: {error}"[:1000]})
            write(name, {"took_s": time.monotonic() - started})


if __name__ == "__main__":
    main()
