"""`python -m weight_port verify FILE`: makes a file's certificate, and holds a file to it."""

import argparse
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crossdim_jax.errors import CrossdimError, WeightsError
from crossdim_jax.storage import files
from crossdim_jax.text import say
from crossdim_jax.weights.file import Weights, load_weights, save_weights
from crossdim_jax.weights.record import describe
from weight_port import inspect, ours, records, source
from weight_port.certificate import another_version, measure, reading, source_sha256
from weight_port.forward import NOT_RUN, TOLERANCE
from weight_port.source import Source
from weight_port.volume import FROM_SOURCE

SUFFIX = ".certificate.json"
# What may differ between two certificates of the same file: they are from two places and times.
CIRCUMSTANCES = (
    *("date", "versions", "problems", "reason", "reference", "of"),
    *("limits", "limit"),  # measured, and only as good as the arithmetic
    *("used", "unused"),  # a 2D weight file, as a source, has other tensors than a checkpoint
)
_AGAINST_2D = re.compile(r"^volume\.stages\[\d+\]\.(edge|zero\w*|activations\.2d\.\w+)$")
_TIMM = re.compile(r"^timm\.(?:features\[(\d+)\]|logits)$")
_ERROR = re.compile(r"^volume\.stages\[(\d+)\]\.(?:own|edge|zero\w*)$")
_MOMENT = re.compile(
    r"^(?:(volume)\.stages|activations)\[(\d+)\](?:\.activations)?\.(\w+)\.(mean|variance)$"
)
_MAYBE_UNKNOWN = ("source_sha256", "source_content_sha256")  # None: a source without, or no source
RELATIVE = 0.05  # of measured departures, which hang on rounding in other machines' arithmetic


def certificate_path(path: str | os.PathLike) -> Path:
    """Path of the copy of a file's certificate, beside it."""
    return Path(f"{path}{SUFFIX}")


def certify(
    path: str | os.PathLike, *, source: Source | None = None, absent: str = "no source was given"
) -> dict[str, Any]:
    """Makes a weight file's certificate and writes it into the file's record and beside the file.

    Args:
      path: a file that `save_weights` wrote.
      source: what it was made of; without it, what needs it is recorded as not run.
      absent: why there is no source.

    Returns:
      the certificate, see `certificate.measure`.

    Raises:
      WeightsError: the file does not do what its recipe promises; the certificate, which names
        the broken promises, is written all the same.
    """
    weights = load_weights(path)
    made = measure(weights, source, absent=absent)
    text = json.dumps(made, indent=1, sort_keys=True, allow_nan=False)
    save_weights(path, weights.arrays, {**weights.metadata, "certificate": made})
    with files.writing(certificate_path(path), "the certificate", kind=WeightsError):
        files.write_text(certificate_path(path), text + "\n")
    if made["problems"]:
        raise WeightsError(
            f"{path} was written, but it does not do what its recipe promises:\n  "
            + "\n  ".join(made["problems"])
            + "\nDo not train with it. Is the source what its name says, and are its conventions?"
        )
    return made


# --------------------------------------------------------------------------- comparing


def departures(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Disagreements of two certificates of one file, as sentences; parts that one lacks are left.

    Errors below the tolerance are rounding and equal; measured departures and moments may differ by
    a few per cent between machines; hashes, names and counts must be the same. What was compared
    with the source is not held against what was compared with the kernels' own sums: running
    statistics may differ.
    """
    then_leaves, now_leaves = dict(_leaves(stored)), dict(_leaves(now))
    volumes = [certificate.get("volume", {}) for certificate in (stored, now)]
    if len({str(v.get("reference")).startswith(FROM_SOURCE) for v in volumes}) > 1:
        then_leaves = {k: v for k, v in then_leaves.items() if not _AGAINST_2D.search(k)}
    found = []
    for place in sorted(then_leaves.keys() & now_leaves.keys()):
        then, this = then_leaves[place], now_leaves[place]
        if then is None or this is None:
            same = then == this or place in _MAYBE_UNKNOWN
        else:
            same = _same(then, this, _rounding(stored, place))
        if not same:
            found.append(f"{place}: certified {_show(then)}, found {_show(this)}")
    return found


def _leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (place, value); a list of names is one value, and parts that were not run have none.

    "volume.stages[2].edge" is a place.
    """
    if isinstance(tree, Mapping):
        if tree.get("status") == NOT_RUN:
            return
        for key, value in tree.items():
            if key not in CIRCUMSTANCES:
                yield from _leaves(value, f"{place}.{key}" if place else key)
    elif isinstance(tree, list) and not all(isinstance(item, str) for item in tree):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{place}[{index}]")
    else:
        yield place, tree


def _rounding(certificate: Mapping[str, Any], place: str) -> float:
    """By how much the number at that place may differ, however small it is itself.

    Relative errors: by the error up to which their feature is called equal. Moments, which are in
    the feature's own unit: by what such an error makes of them. Anything else: not at all.
    """
    if match := _TIMM.match(place):
        return _limit(certificate, int(match[1] or -1))
    if match := _ERROR.match(place):
        return _limit(certificate, int(match[1]), in_volume=True)
    if match := _MOMENT.match(place):
        volume, index, network, which = match[1], int(match[2]), match[3], match[4]
        if volume:
            moments = certificate["volume"]["stages"][index]["activations"][network]
        else:
            moments = certificate["activations"][index][network]
        variance = moments.get("variance") or 0.0
        limit = _limit(certificate, index, in_volume=bool(volume))
        return limit * (2 * variance if which == "variance" else math.sqrt(variance))
    return 0.0


def _limit(certificate: Mapping[str, Any], index: int, *, in_volume: bool = False) -> float:
    """Up to which relative error a feature (-1: the last, or the logits) is called equal."""
    if in_volume:
        return certificate["volume"]["stages"][index].get("limit", TOLERANCE)
    limits = certificate.get("timm", {}).get("limits")
    return limits[index] if limits else TOLERANCE


def _same(then: Any, now: Any, rounding: float) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (then, now))
    if numbers and (isinstance(then, float) or isinstance(now, float)):
        return math.isclose(then, now, rel_tol=RELATIVE, abs_tol=rounding)
    return then == now


def _show(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def beside(path: str | os.PathLike, stored: Mapping[str, Any]) -> list[str]:
    """Problem of the copy that lies beside the file; nothing if there is none."""
    copy = certificate_path(path)
    if not copy.exists():
        return []
    try:
        same = json.loads(copy.read_text(encoding="utf-8")) == stored
    except (OSError, ValueError):
        return [f"{copy}: cannot be read as JSON; make it again with verify --write"]
    return [] if same else [f"{copy}: is not the certificate that is in the file"]


# --------------------------------------------------------------------------- the source


def find_source(
    weights: Weights, *, checkpoint: str | None = None, file: str | None = None
) -> tuple[Source | None, str]:
    """Source that a weight file was made of, or None and why it is not there. No network is asked.

    Args:
      weights: the file.
      checkpoint: a checkpoint of timm's.
      file: a 2D weight file of this project.

    Raises:
      WeightsError: a file was named and cannot be read.
    """
    record = weights.metadata
    name = str(record.get("id"))
    if checkpoint:
        return source.from_file(checkpoint, name), ""
    if file:
        return ours.as_source(ours.read_2d(file, "comparison")), ""
    try:
        if record.get("source") == "timm":
            return source.from_timm(name, cached_only=True), ""
        if record.get("source") == "random":
            return _drawn_again(record), ""
    except CrossdimError as error:
        return None, records.without_folders(str(error).splitlines()[0])
    return None, f"its source {record.get('file')} was not given (--checkpoint=FILE)"


def _drawn_again(record: Mapping[str, Any]) -> Source:
    """Random weights from their seed, if this machine's torch draws what the file was made of."""
    known = (record.get("certificate") or {}).get("source_content_sha256")
    if known is None:
        raise WeightsError(
            "random weights, and nothing in the file tells which: no certificate has their hash"
        )
    found = source.random(str(record["id"]), seed=record.get("seed") or 0)
    if known != source_sha256(found):
        raise WeightsError("random weights, which this version of torch draws differently")
    return found


# --------------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add("file", metavar="FILE", help="a weight file of this project, 2D or 3D")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--checkpoint", metavar="FILE", help="timm's checkpoint that it was made of"
    )
    origin.add_argument(
        "--source", metavar="FILE", help="a 2D weight file of the same source, instead"
    )
    add("--write", action="store_true", help="make the certificate anew and keep it")
    add("--json", action="store_true", help="the whole comparison, for programs")


def main(args: argparse.Namespace) -> int:
    """Runs the file against its source; 0 if it keeps its promises and its certificate."""
    weights = load_weights(args.file)
    origin, absent = find_source(weights, checkpoint=args.checkpoint, file=args.source)
    if args.write:
        stored = now = certify(args.file, source=origin, absent=absent)
        found = []
    else:
        stored = weights.metadata.get("certificate")
        now = measure(weights, origin, absent=absent)
        found = [*now["problems"]]
        if stored is None:
            found.append("there is no certificate in the file; `verify --write` makes one")
        elif other := another_version(stored):
            found.append(other)
        else:
            with reading(args.file):
                found += [*departures(stored, now), *beside(args.file, stored)]
    if args.json:
        print(json.dumps({"file": args.file, "departures": found, "found": now}, indent=1))
    else:
        say("\n".join([describe(weights.metadata), *inspect.certificate_lines(now)]))
        if found:
            say(f"\n{args.file} departs from what it should be:")
            say("\n".join(f"  {departure}" for departure in found))
        else:
            say(f"\n{args.file} is what its certificate of {stored['date']} says.")
    return 1 if found else 0
