"""`python -m benchmarks --size=64`: the whole comparison, JSON and a table.

See `--help` for the rest. jax and torch are imported only after the environment is settled.
"""

import argparse
import gc
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine

Row = dict[str, Any]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", type=int, help="of the cube, a multiple of 32 (64; 128 on a GPU)")
    parser.add_argument("--out", default="build/bench.json", help="JSON; the table beside it, .md")
    parser.add_argument("--only", default="", help="regular expression for the rows' names")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each side")
    parser.add_argument("--ops", default="auto", help="our ops mode")
    parser.add_argument("--against", help="ops mode of the column beside (lax; fast on a GPU) or -")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--compile-limit-s", type=float, default=300.0, help="per torch.compile")
    return parser.parse_args()


def prepare(device: str) -> str:
    """Settles what must be settled before jax and torch are imported; returns OpenMP's policy."""
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Both frameworks share one GPU here: jax must not take most of it at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return machine.settle_openmp()


def network_rows(options: argparse.Namespace, dtypes: list[str], measure) -> Iterator[Row]:
    """Forward, loss and gradient, training step of whole networks, each as it is measured."""
    from benchmarks import flops, inputs, ours, theirs
    from benchmarks.timing import Case

    for network, dtype, task in itertools.product(ours.NETWORKS, dtypes, ours.TASKS):
        name = f"{network} {task}"
        if not re.search(options.only, name):
            continue
        size = ours.shape(network, options.size)

        def mine(mode, task=task, dtype=dtype, network=network):
            return ours.contestant(task, options.size, mode, dtype, network)

        def makers(task=task, dtype=dtype, network=network, size=size):
            weights = ours.weights(network=network)
            for variant in theirs.variants():
                yield (
                    str(variant),
                    lambda v=variant: theirs.contestant(task, size, v, weights, dtype, network),
                )

        def exact(task=task, network=network, size=size):
            plain, weights = theirs.variants()[0], ours.weights(network=network)
            made = theirs.contestant(task, size, plain, weights, "float64", network)
            return made.arrays()

        case = Case("network", name, dtype, mine, dict(makers()))
        case.compiling = [str(variant) for variant in theirs.variants() if variant.compiled]
        if task != "forward" or dtype == "bfloat16":
            case.exact = exact
        row = measure(case)
        if row is None:
            continue
        image = (1, *size, inputs.MODALITIES)
        net, train = ours.model("lax", network=network), task != "forward"
        row["analytic_flops"] = flops.of_program(net, image, train=train)
        yield row


def operation_rows(options: argparse.Namespace, dtypes: list[str], measure) -> Iterator[Row]:
    """Every operation at the sizes it has in the network, forward and backward."""
    from benchmarks import operations

    for dtype in dtypes:
        for operation in operations.operations(options.size):
            if re.search(options.only, operation.name):
                row = measure(operations.case(operation, dtype))
                if row is not None:
                    yield row


def memory_rows(options: argparse.Namespace, dtypes: list[str], rows: list[Row]) -> Iterator[Row]:
    """Peak memory: eager variants that agree, and the one that was the fastest."""
    from benchmarks import memory, theirs

    if not re.search(options.only, "memory"):
        return
    steps = [r for r in rows if r["name"] == "dxnet training step"]
    wrong = {v for r in steps for v, ms in r["variants_ms"].items() if isinstance(ms, str)}
    fastest = {r["theirs"]["variant"] for r in steps}
    chosen = [
        v
        for v in theirs.variants()
        if str(v) in fastest or not (v.compiled or v.graph or str(v) in wrong)
    ]
    gc.collect()
    for dtype in dtypes:
        yield from memory.measure(options.size, dtype, options.ops, chosen)
        _say(f"memory, {dtype}")


def _write(out: Path, result: dict[str, Any]) -> str:
    """Writes what has been measured up to now, JSON and the table, each whole; returns the table.

    A run that is cut off keeps it.
    """
    from benchmarks import report
    from crossdim_jax.storage import files

    text = report.render(result)
    files.write_text(out, json.dumps(result, indent=1) + "\n")
    files.write_text(out.with_suffix(".md"), text)
    return text


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measures, writes the JSON, prints the table."""
    options = arguments()
    policy = prepare(options.device)

    import jax
    import torch

    from benchmarks import ours, scale, timing

    gpu = jax.default_backend() == "gpu"
    if gpu != torch.cuda.is_available():
        sys.exit(
            f"jax runs on {jax.default_backend()} and torch sees "
            f"{'a' if torch.cuda.is_available() else 'no'} GPU: install both for the same device, "
            "or compare on the CPU with --device=cpu"
        )
    torch.set_num_threads(machine.cores())
    options.size = options.size or (128 if gpu else 64)
    against = options.against or ("fast" if gpu else "lax")
    dtypes = ["float32", "bfloat16"] if gpu else ["float32"]

    failed = []

    def measure(case):
        try:
            row = timing.measure(
                case,
                mode=options.ops,
                against=None if against == "-" else against,
                rounds=options.rounds,
                limit_s=options.compile_limit_s,
            )
        except Exception as error:  # hours of other rows must not be lost with this one
            failed.append([case.name, case.dtype, timing.reason(error)])
            _say(f"{case.name}, {case.dtype}: failed")
            return None
        _say(f"{row['name']}, {row['dtype']}: {row['ratio']:.2f}")
        return row

    settings = {
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "volume": f"{options.size}^3 ({ours.DSNET_DEPTH} slices for DS-Net), 4 channels, batch 1",
        "ops": options.ops,
        "torch threads": torch.get_num_threads(),
        "OpenMP": policy,
        "rounds": options.rounds,
        "float32 on a GPU": "TF32 off on both sides" if gpu else "",
    }
    result = {
        "machine": machine.describe(),
        "settings": settings,
        "rows": [],
        "memory": [],
        "scale": [],
        "failed": failed,
    }
    result["judged"] = not gpu and options.size == 64 and options.ops == "auto"
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for group, rows in (
        ("rows", network_rows(options, dtypes, measure)),
        ("rows", operation_rows(options, dtypes, measure)),
        ("memory", memory_rows(options, dtypes, result["rows"])),
    ):
        for row in rows:
            result[group].append(row)
            _write(out, result)
    if not result["rows"] + result["memory"] + failed:
        sys.exit(
            f"--only={options.only!r} is found in no row's name; names are like 'dxnet forward', "
            "'dsnet training step', 'dense k3 s1 16->16 at 64x64x64' and 'memory'"
        )
    try:
        result["scale"] = scale.dynunet(options) if gpu else []
    except Exception as error:
        failed.append(["MONAI's DynUNet", "bfloat16", timing.reason(error)])
    print(_write(out, result))
    if failed:
        sys.exit(f"{len(failed)} rows failed, see above")


if __name__ == "__main__":
    main()
