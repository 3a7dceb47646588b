"""Tables of the rows, in Markdown, which reads as well in a terminal."""

import math
import re
from collections.abc import Sequence
from typing import Any

from benchmarks import machine

Row = dict[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; all but the first are right-aligned."""
    if not rows:
        return ""
    cells = [list(header), *map(list, rows)]
    widths = [max(2, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row):
        padded = [c.rjust(w) for c, w in zip(row, widths, strict=True)]
        padded[0] = row[0].ljust(widths[0])
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(cells[0]), "| " + " | ".join(rule) + " |", *map(line, cells[1:])])


def number(value: float | None) -> str:
    """Three significant digits, no exponent for what can be read without."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(sample: Row) -> str:
    low, high = number(sample["min_ms"]), number(sample["max_ms"])
    return f"{number(sample['median_ms'])} ({low}-{high})"


def _other(row: Row) -> str:
    other = row.get("other", {})
    if "failed" in other:
        return "failed"
    return number(other.get("median_ms"))


def timings(rows: Sequence[Row]) -> str:
    """Milliseconds: median (least-most)."""
    mode = next((r["other"]["mode"] for r in rows if "other" in r), "other")
    header = [
        "forward and backward" if rows and rows[0]["group"] == "operation" else "",
        "dtype",
        "ours ms",
        f"ours, {mode}",
        "PyTorch ms",
        "ratio",
        "of least",
        "rel. error",
        "others",
        "best variant of PyTorch",
    ]
    body = []
    for row in rows:
        share = row["others_share"]
        body.append(
            [
                row["name"],
                row["dtype"],
                _spread(row["ours"]),
                _other(row),
                _spread(row["theirs"]),
                f"{row['ratio']:.2f}",
                f"{row['ratio_of_least']:.2f}",
                f"{row['relative_error']:.1e}",
                "-" if share is None else f"{share:.0%}",
                row["theirs"]["variant"],
            ]
        )
    return table(header, body)


def left_out(rows: Sequence[Row]) -> str:
    """Variants of the peer that did not run or did not agree, once per reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for variant, value in row["variants_ms"].items():
            if isinstance(value, str):
                kind = re.sub(r"[\d.]+(e-?\d+)?", "#", value)
                reasons.setdefault((variant, kind), []).append(f"{row['name']}: {value}")
    lines = [
        f"- {variant}, {len(found)}x, first in {found[0]}"
        for (variant, _), found in reasons.items()
    ]
    return "\n".join(lines)


def memory(rows: Sequence[Row]) -> str:
    """Megabytes; "above imports" is what the framework's own libraries do not take."""
    header = ["", "dtype", "imports", "before steps", "in steps", "whole process", "above imports"]
    if any("device_mb" in row for row in rows):
        header.append("device")
    body = []
    for row in rows:
        if "failed" in row:
            cells = [row["failed"], *[""] * (len(header) - 3)]
        else:
            keys = ("imports_mb", "start_mb", "steps_mb", "peak_mb")
            cells = [number(row[k]) for k in keys]
            cells.append(number(row["peak_mb"] - row["imports_mb"]))
            if "device" in header:
                cells.append(number(row.get("device_mb")))
        body.append([row["name"], row["dtype"], *cells])
    return table(header, body)


def counts(rows: Sequence[Row]) -> str:
    """Floating-point operations: the compiled program's against the network's."""
    header = ["", "dtype", "analytic GFLOP", "compiled GFLOP", "compiled/analytic", "compile s"]
    body = [
        [
            row["name"],
            row["dtype"],
            number(row["analytic_flops"] / 1e9),
            number(row["ours"]["flops"] / 1e9),
            f"{row['ours']['flops'] / row['analytic_flops']:.3f}",
            number(row["ours"]["compile_s"]),
        ]
        for row in rows
        if "analytic_flops" in row
    ]
    return table(header, body)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


# The project's targets, float32 on a CPU: rows by name, at most, aim.
TARGETS = (
    ("DX-Net forward", r"dxnet forward", 0.75, 0.6),
    ("DX-Net training step", r"dxnet training step", 0.95, 0.7),
    (
        "depthwise 3D, 96 to 480 channels",
        r"depthwise k[35] s[12] (96|144|240|480) .*",
        1.0,
        0.7,
    ),
    ("DS-Net forward", r"dsnet forward", 1.0, 0.8),
    ("DS-Net training step", r"dsnet training step", 1.0, 0.8),
    ("up + concat + conv", r"up\+concat\+conv .*", 0.9, 0.6),
)


def _verdict(worst: float, most: float, shares: Sequence[float | None], judged: bool) -> str:
    if not judged:
        return "-"
    if any(share is not None and share > machine.QUIET for share in shares):
        return "not quiet"
    return "met" if worst <= most else "missed"


def targets(rows: Sequence[Row], memory_rows: Sequence[Row], judged: bool) -> str:
    """The project's targets: ratios ours/PyTorch's, the worst of a group and its geometric mean.

    Args:
      rows: of `timing.measure`.
      memory_rows: of `memory.measure`.
      judged: whether this is what the targets are for (a CPU, 64^3); "-" otherwise. Timings on a
        machine that others use are not judged either.
    """
    body = []
    for title, pattern, most, aim in TARGETS:
        found = [r for r in rows if r["dtype"] == "float32" and re.fullmatch(pattern, r["name"])]
        if found:
            ratios, shares = [r["ratio"] for r in found], [r["others_share"] for r in found]
            verdict = _verdict(max(ratios), most, shares, judged)
            cells = [f"{max(ratios):.2f}", f"{_geometric_mean(ratios):.2f}", f"{most}", f"{aim}"]
            body.append([title, *cells, verdict])
    found = [r for r in memory_rows if r["dtype"] == "float32" and "peak_mb" in r]
    theirs = [r["peak_mb"] for r in found if r["side"] == "theirs"]
    for row in found:
        if row["side"] == "ours" and theirs:
            ratio = row["peak_mb"] / min(theirs)  # their smallest: the strictest reading
            title = f"peak memory of a training step, whole process: {row['name']}"
            verdict = _verdict(ratio, 1.0, [], judged)
            body.append([title, f"{ratio:.2f}", f"{ratio:.2f}", "1.0", "0.7", verdict])
    return table(["ratio ours/PyTorch's", "worst", "mean", "at most", "aim", ""], body)


def render(result: dict[str, Any]) -> str:
    """The whole report.

    Args:
      result: `machine` and `settings` (facts by name), `judged` (see `targets`), `rows`, `memory`,
        `failed` (name, dtype and reason of rows that could not be measured), and `scale` (lines).
    """
    rows = result["rows"]
    facts = result["machine"] | result["settings"]
    parts = ["# Ours and PyTorch side by side", "", *(f"- {k}: {v}" for k, v in facts.items() if v)]
    shares = [r["others_share"] for r in rows if r["others_share"] is not None]
    if shares and max(shares) > machine.QUIET:
        noisy = sum(share > machine.QUIET for share in shares)
        parts += ["", f"**Not a quiet machine**: in {noisy} of {len(shares)} comparisons others"]
        parts[-1] += f" used more than {machine.QUIET:.0%} of the cores, up to {max(shares):.0%}."
    sections = [
        ("Targets", targets(rows, result["memory"], result["judged"])),
        ("Networks", timings([r for r in rows if r["group"] == "network"])),
        ("Floating-point operations", counts(rows)),
        ("Peak memory of a training step, MB", memory(result["memory"])),
        ("Operations", timings([r for r in rows if r["group"] == "operation"])),
        ("For scale", "\n".join(result["scale"])),
        ("Variants of PyTorch left out", left_out(rows)),
        ("Rows that failed", "\n".join(f"- {n}, {d}: {why}" for n, d, why in result["failed"])),
    ]
    for title, text in sections:
        if text:
            parts += ["", f"## {title}", "", text]
    return "\n".join(parts) + "\n"
