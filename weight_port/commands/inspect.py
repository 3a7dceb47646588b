"""`inspect`: a weight file's record, tensors and certificate to read."""

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from crossdim_jax.models import encoders
from crossdim_jax.text import say
from crossdim_jax.weights.file import Weights, content_sha256, load_weights
from crossdim_jax.weights.paths import ENCODER, is_head
from weight_port.certificate import another_version, reading
from weight_port.forward import NOT_RUN

WIDTH = 100
# Fields of a record that are long lists, or are shown elsewhere.
_APART = ("unused", "fresh", "versions", "certificate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("file", metavar="FILE", help="a weight file of this project, 2D or 3D")
    parser.add_argument("--json", action="store_true", help="the record as it is, for programs")


def main(args: argparse.Namespace) -> int:
    """Prints; nothing is run."""
    weights = load_weights(args.file)
    if args.json:
        print(json.dumps(weights.metadata, indent=1, sort_keys=True))
    else:
        say("\n".join(lines(weights)))
    return 0


def lines(weights: Weights) -> list[str]:
    """The whole table, at most `WIDTH` characters wide."""
    record = weights.metadata
    certificate = record.get("certificate")
    held = "agrees with the file" if weights.checked else "none in the file, an older one"
    return [
        weights.name,
        "",
        *_section("record", _record(record)),
        *_section("hash", [("content", content_sha256(weights.arrays)), ("", held)]),
        "",
        *_tensors(weights),
        "",
        *_certificate(certificate, weights.name),
    ]


def _certificate(certificate: Mapping[str, Any] | None, name: str) -> list[str]:
    if not certificate:
        return ["certificate   none"]
    with reading(name):
        return certificate_lines(certificate)


def _record(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(key, _text(value)) for key, value in record.items() if key not in _APART]
    versions = [f"{k} {v}" for k, v in (record.get("versions") or {}).items() if v]
    rows.append(("versions", ", ".join(versions)))
    for key in ("fresh", "unused"):
        names = record.get(key) or []
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        rows.append((key, f"{len(names)}: {shown}" if names else "none"))
    return rows


def _text(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _section(title: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Names and values in columns, long values on several lines."""
    found = []
    for name, value in rows:
        first, *others = textwrap.wrap(value, WIDTH - 27, break_on_hyphens=False) or [""]
        found.append(f"{title:<12}  {name:<12} {first}".rstrip())
        found += [f"{'':<27}{other}" for other in others]
        title = ""
    return found


def _tensors(weights: Weights) -> list[str]:
    """A line per stage: tensors, values, windows of its kernels."""
    stages: dict[str, list[str]] = {}
    architecture = weights.metadata.get("architecture")
    known = architecture in [*encoders.ENCODERS]
    for path in weights.arrays:
        inside = path.partition(f"/{ENCODER}/")[2]
        stage = encoders.stage(architecture, inside) if known else None
        name = "head" if is_head(path) else stage[0] if stage else "stem"
        stages.setdefault(name, []).append(path)
    order = sorted(stages, key=lambda s: (s == "head", s != "stem", len(s), s))
    found = [f"{'tensors':<12}  {'stage':<12} {'tensors':>7} {'values':>12}  windows"]
    for stage in order:
        arrays = {path: weights.arrays[path] for path in stages[stage]}
        windows = {
            "x".join(map(str, array.shape[:-2]))
            for path, array in arrays.items()
            if path.endswith("kernel") and max(array.shape[:-2], default=1) > 1
        }
        values = sum(array.size for array in arrays.values())
        found.append(
            f"{'':<12}  {stage:<12} {len(arrays):>7} {values:>12,}  {', '.join(sorted(windows))}"
        )
    return [line.rstrip() for line in found]


# --------------------------------------------------------------------------- the certificate


def certificate_lines(certificate: Mapping[str, Any]) -> list[str]:
    """A certificate as a table."""
    if other := another_version(certificate):
        return _section("certificate", [("", other)])
    conditions = certificate["conditions"]
    size = f"{conditions['plane']} x {conditions['plane']}"
    size += f" x {conditions['depth']} slices" if conditions["depth"] else ""
    versions = [f"{k} {v}" for k, v in certificate["versions"].items() if v]
    rows = [
        ("date", certificate["date"]),
        ("input", f"{size}, {conditions['input']}; relative errors in float32"),
        ("versions", ", ".join(versions)),
        ("source", f"sha256 {certificate['source_sha256'] or 'none'}"),
        ("made", _made(certificate["made"])),
        ("timm", _timm(certificate["timm"])),
    ]
    found = _section("certificate", rows)
    if "volume" in certificate:
        found += _volume(certificate["volume"])
    problems = certificate["problems"]
    found += _section("", [("PROBLEM", problem) for problem in problems])
    return found


def _made(made: Mapping[str, Any]) -> str:
    if made["status"] == NOT_RUN:
        return f"not run: {made['reason']}"
    if made["status"] != "run":
        return "the source cannot be converted"
    count = len(made["differing"])
    verdict = "all are the same" if not count else f"{count} DIFFER"
    return (
        f"{made['target']} tensors made again from the source, {verdict}; of the source "
        f"{len(made['used'])} used, {len(made['unused'])} unused; {len(made['fresh'])} fresh"
    )


def _timm(timm: Mapping[str, Any]) -> str:
    if timm["status"] == NOT_RUN:
        return f"not run: {timm['reason']}"
    errors = " ".join(map(_number, timm["features"]))
    logits = timm["logits"]
    if isinstance(logits, Mapping):
        logits = f"not run ({logits['reason']})"
    else:
        logits = _number(logits)
    return (
        f"{timm['of']} against {timm['model']}: features {errors}, logits {logits} "
        f"(at most {_limits(timm['limits'])})"
    )


def _limits(limits: Sequence[float]) -> str:
    """One number where all features have it, else one for each."""
    return f"{limits[0]:g}" if len(set(limits)) == 1 else " ".join(f"{x:.0e}" for x in limits)


def _volume(volume: Mapping[str, Any]) -> list[str]:
    """3D against 2D: what is promised, then a line for each feature."""
    rows = [("2D network", volume["reference"])]
    for padding, promise in volume["promises"].items():
        where = promise["where"]
        said = "no promise" if where == "nowhere" else f"equal to 2D {where}"
        rows.append((f"{padding} padding", f"{said}: {promise['why']}"))
    limits = _limits([row["limit"] for row in volume["stages"]])
    rows.append(("at most", f"{limits} where equality is promised"))
    errors = {
        "own sums": "own",  # 2D of its own kernels, summed over depth
        "edge": "edge",
        "zero": "zero",
        "middle": "zero_middle",
        "inside": "zero_inside",
    }
    found = _section("3D", rows)
    found.append(_row("", ["feature", *errors, "slices"]))
    for row in volume["stages"]:
        slices = f"{row['slices']['inside']} of {row['slices']['all']}"
        cells = [_number(row.get(key)) for key in errors.values()]
        found.append(_row("error", [f"/{row['reduction']}", *cells, slices]))
    networks = {"2D": "2d", "3D const.": "constant", "3D uncorr.": "uncorrelated"}
    found.append(_row("", ["feature", *(n for name in networks for n in (name, ""))]))
    found.append(_row("", ["", *("mean", "variance") * len(networks)]))
    for row in volume["stages"]:
        pairs = [row["activations"].get(key) or {} for key in networks.values()]
        cells = [_number(pair.get(key)) for pair in pairs for key in ("mean", "variance")]
        found.append(_row("activation", [f"/{row['reduction']}", *cells]))
    return found


def _row(title: str, cells: Sequence[str]) -> str:
    first, *others = cells
    line = f"{'':<13}{title:<12}{first:>9}" + "".join(f"{cell:>11}" for cell in others)
    return line.rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
