"""`list`: the networks whose weights can be ported."""

import argparse
import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.text import say
from weight_port import families, local, names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add("words", nargs="*", metavar="WORD", help="only networks whose names hold all of these")
    add("--tags", action="store_true", help="also timm's pre-trained weights, and their licences")
    add("--json", action="store_true", help="for programs: one mapping a network")


def main(args: argparse.Namespace) -> int:
    """Prints the table, or JSON; both name what is left out, and why."""
    timm = importlib.util.find_spec("timm") is not None
    rows = names.supported(ask_timm=args.tags or (args.json and timm))
    rows = [row for row in rows if _matches(row, args.words)]
    if not rows:
        raise WeightsError(
            f"No network is called {' '.join(args.words)!r}; see them all with: python -m "
            "weight_port list"
        )
    if args.json:
        held = local.here()
        found = [
            dataclasses.asdict(row)
            | {"here": {tag: w for tag, w in held.items() if tag.partition(".")[0] in row.models}}
            for row in rows
        ]
        print(json.dumps({"supported": found, "left_out": names.all_left_out()}, indent=1))
    else:
        say(table(rows, tags=args.tags))
    return 0


def _matches(row: names.Row, words: Sequence[str]) -> bool:
    every = (row.architecture, *row.models, *(row.tags or ()))
    return all(any(word in name for name in every) for word in words)


COLUMNS = (
    *("architecture", "timm's names", "parameters", "pixels", "features from", "norm"),
    "weights",
)


def table(rows: Sequence[names.Row], *, tags: bool = False) -> str:
    """The rows as text, at most 120 columns wide without tags."""
    held = local.here()
    cells = [COLUMNS, *(_cells(row, held) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    right = {COLUMNS.index("parameters"), COLUMNS.index("pixels")}
    lines = []
    for row, source in zip(cells, (None, *rows), strict=True):
        parts = [
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
        if tags and source is not None:
            for tag in source.tags or ("no pre-trained weights in timm",):
                licence = (source.licences or {}).get(tag)
                where = f"  {held.get(tag, local.DOWNLOAD)}" if tag in (source.tags or ()) else ""
                lines.append(f"    {tag}{f'  ({licence})' if licence else ''}{where}")
    lines += ["", f"{len(rows)} architectures, {sum(len(row.models) for row in rows)} names."]
    lines += _where_from(held)
    notes: dict[str, None] = {}  # each once, in order
    left_out: dict[str, str] = {}
    for family in dict.fromkeys(families.of(row.architecture) for row in rows):
        mine = [row.paddings for row in rows if families.of(row.architecture) is family]
        told = family.notes({name: p for paddings in mine for name, p in paddings.items()})
        notes |= dict.fromkeys(told)
        left_out |= family.LEFT_OUT
    # Patterns there: "..." reads better than the end of one.
    left_out = {name.replace(r"(_\w+)?", "..."): why for name, why in left_out.items()}
    return "\n".join([*lines, *notes, *(f"Left out: {n}: {why}." for n, why in left_out.items())])


def _where_from(held: Mapping[str, str]) -> list[str]:
    """Lines on where weights come from, and which packages are not installed."""
    lines = [
        "Weights in a package or in timm's cache are on this machine; others need a download, if "
        "timm has any (`--tags`",
        "names them one by one), or a file of yours (--checkpoint=FILE).",
    ]
    missing = [row.name for row in local.packages() if row.name not in held]
    if missing:
        lines.append(f"pip install 'crossdim_jax[imagenet]' brings {', '.join(missing)}.")
    return lines


def _cells(row: names.Row, held: Mapping[str, str]) -> tuple[str, ...]:
    places = {where for tag, where in held.items() if tag.partition(".")[0] in row.models}
    first = encoders.feature_info(row.architecture)[0].reduction
    return (
        row.architecture,
        families.of(row.architecture).label(row.architecture),
        f"{row.parameters:,}",
        str(row.resolution),
        f"/{first} {' '.join(map(str, row.channels))}",
        row.norm,
        next((place for place in (local.PACKAGE, local.CACHE) if place in places), local.DOWNLOAD),
    )
