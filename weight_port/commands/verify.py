"""`verify`: holds a weight file to its certificate, or makes it one."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from crossdim_jax.errors import CrossdimError, WeightsError
from crossdim_jax.text import say
from crossdim_jax.weights.file import Weights, load_weights
from crossdim_jax.weights.record import describe
from weight_port import ours, records, source
from weight_port.certificate import (
    another_version,
    beside,
    certify,
    measure,
    reading,
    source_sha256,
)
from weight_port.commands.inspect import certificate_lines
from weight_port.departures import departures
from weight_port.source import Source


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
        said = {field: record.get(field) for field in ("scheme", "prefix", "ema")}
        asked = record.get("asked") or {}
        return source.from_file(checkpoint, name, **said, padding=asked.get("padding")), ""
    if file:
        return ours.as_source(ours.read_2d(file, "comparison")), ""
    try:
        if record.get("source") == "package" and (packed := source.from_package(name)):
            return packed, ""
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
        say("\n".join([describe(weights.metadata), *certificate_lines(now)]))
        if found:
            say(f"\n{args.file} departs from what it should be:")
            say("\n".join(f"  {departure}" for departure in found))
        else:
            say(f"\n{args.file} is what its certificate of {stored['date']} says.")
    return 1 if found else 0
