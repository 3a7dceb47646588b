"""A weight file from a plan and a source: convert, check, write, certify, tell."""

import collections
import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from crossdim_jax.models.dxnet import DXNet
from crossdim_jax.models.encoders import PLANE_FIELDS
from crossdim_jax.models.family import FIXED
from crossdim_jax.text import say
from crossdim_jax.weights import norms
from crossdim_jax.weights.file import Weights, save_weights
from crossdim_jax.weights.fit import account
from crossdim_jax.weights.paths import HEAD
from crossdim_jax.weights.recipe import Recipe
from crossdim_jax.weights.record import describe
from weight_port import families, plan, records, source
from weight_port.convert import Converted, convert
from weight_port.formats.scheme import TIMM


def make(todo: plan.Plan, origin: source.Source, *, certificate: bool) -> None:
    """Converts, checks, writes, certifies, and prints what was done."""
    converted = convert(origin, todo.recipe)
    metadata = record(origin, todo.recipe, converted)
    todo.check(Weights(converted.arrays, metadata, todo.out))
    save_weights(todo.out, converted.arrays, metadata)
    if certificate:
        from weight_port.certificate import certify  # runs networks: only where it is asked for

        certify(todo.out, source=origin)
    say(summary(todo, metadata, converted, origin.others))


def record(origin: source.Source, recipe: Recipe, converted: Converted) -> dict[str, Any]:
    """The metadata of a weight file: all it takes to judge it, or to make it again."""
    architecture = origin.name.architecture
    return {
        **origin.origin,
        "architecture": architecture,
        "padding": origin.name.padding,
        "eps": origin.name.eps,
        **account(converted.fitted, architecture, recipe),
        "unused": list(converted.unused),
        **records.stamp(),
    }


COUNTERS = "BatchNorm counters"
UNUSED = {
    COUNTERS: r".*num_batches_tracked",
    "running statistics": r".*running_(mean|var)",
}
OTHERS = "other modules"


def summary(
    todo: plan.Plan,
    metadata: dict[str, Any],
    converted: Converted,
    others: Collection[str] = (),
) -> str:
    """Summary of what was done, for people; ends with the next command.

    others: names among the unused that are not the network's.
    """
    groups: dict[str, int] = {}
    of_head = families.of(metadata["architecture"]).of_head
    groups |= {OTHERS: len(others)} if others else {}
    for name in [name for name in converted.unused if name not in others]:
        kind = next((k for k, pattern in UNUSED.items() if re.fullmatch(pattern, name)), name)
        # First of all: the head's norm has running statistics too.
        kind = "classification head" if of_head(name) and kind != COUNTERS else kind
        groups[kind] = groups.get(kind, 0) + 1
    unused = ", ".join(f"{kind} {n}" for kind, n in groups.items())
    counts = collections.Counter()
    for path, array in converted.arrays.items():
        counts[path.partition("/")[0]] += array.size
    head = f", and {counts[HEAD]:,} numbers of the head" if counts[HEAD] else ""
    lines = {
        "weights": describe(metadata),
        "sha256": metadata["sha256"] or "none",
        "names": _names(metadata),
        "tensors": f"{len(converted.used)} used of {len(converted.used) + len(converted.unused)}",
        "unused": unused or "none",
        "fresh": ", ".join(converted.fresh) or "none",
        "kernels": _kernels(metadata, converted),
        "norms": _norms(todo.recipe),
        "written": f"{len(converted.arrays)} tensors, {counts['params']:,} parameters{head}",
        "file": str(todo.out),
        "next": next_command(todo, metadata),
    }
    return "\n".join(f"{key:8} {value}" for key, value in lines.items() if value)


def _names(metadata: Mapping[str, Any]) -> str:
    """Scheme and place of the checkpoint's tensors, where they are not plainly timm's."""
    parts = [f"{metadata.get('scheme') or TIMM}'s"]
    parts += [f"under {metadata['prefix']!r}"] if metadata.get("prefix") else []
    parts += ["moving averages"] if metadata.get("ema") else []
    unusual = len(parts) > 1 or metadata.get("scheme")
    asked = " (padding as asked for)" if metadata.get("asked") else ""
    conventions = f"{metadata['padding']} padding, eps {metadata['eps']:g}{asked}"
    return f"{', '.join(parts)}: {conventions}" if unusual or asked else ""


def _kernels(metadata: dict[str, Any], converted: Converted) -> str:
    """Number of kernels that each mode inflated, and their taps by stage."""
    modes = list(converted.modes.values())
    if not modes:
        return ""
    counts = ", ".join(f"{n} by {mode}" for mode, n in collections.Counter(modes).most_common())
    taps = ",".join(map(str, metadata["depth_taps"]))
    form = ", factorised" if metadata["factorised"] else ""
    return f"{counts}; taps along depth by stage {taps}{form}"


def _norms(recipe: Recipe) -> str:
    said = {
        "carried": "running statistics carried over from 2D",
        "stale": "running statistics are stale: measure them with config.weights.reestimate, or "
        "`python -m weight_port reestimate`",
        "dropped": "running statistics dropped, each input is normalised by its own",
        "none": "as the network has them, over channels or not at all",
    }[norms.recorded(recipe.norm, recipe.statistics)]
    if "carried" in said and {"sqrt", "acs"} & set(recipe.modes):
        said += "; they describe 2D responses, which this mode changes: consider reestimate"
    return f"{recipe.norm}: {said}"


def next_command(todo: plan.Plan, metadata: Mapping[str, Any]) -> str:
    """The command that trains with the file."""
    recipe = todo.recipe
    # Where they are those of a config that says nothing of them, there is nothing to say.
    network = {"encoder": "architecture", "padding": "padding", "encoder_eps": "eps"}
    usual = DXNet().encoder
    named = {
        name: metadata[field]
        for name, field in network.items()
        if metadata[field] != getattr(usual, PLANE_FIELDS[name])
    }
    said = {
        "weights.file": todo.out,
        "weights.source": todo.name,
        "weights.inflate": recipe.inflate,
        "weights.inflate_at": recipe.inflate_at,
        "weights.stem": recipe.stem,
        **{f"model.{name}": value for name, value in named.items()},
        # A 2D file is inflated for a network of any norm.
        "model.norm": None if recipe.norm in FIXED or recipe.ndim == 2 else recipe.norm,
        "model.depth_kernels": recipe.depth_kernels,
        "model.factorised": recipe.factorised,
        "weights.reestimate": 16 if recipe.statistics == "reestimate" else None,
    }
    by_hand = [f"--config.{field}={value}" for field, value in said.items() if value]
    options = todo.config or shlex.join(["--config=CONFIG", *by_hand, plan.DATA_ROOT])
    return f"python launch.py {options} --workdir=runs/NAME"
