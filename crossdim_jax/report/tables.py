"""Tables 5 and 6 of the paper from an evaluation's summary, as Markdown and as HTML.

`summary` is what `evaluation.score.evaluate_cases` returns and writes to summary.json.
Messaoudi et al. 2023, Tables 5 and 6: mean, median and quartiles per region.
"""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from crossdim_jax import metrics
from crossdim_jax.text import shown

STATISTICS = {
    "mean": "Mean",
    "sd": "SD",
    "median": "Median",
    "q25": "25th percentile",
    "q75": "75th percentile",
}
MISSING = "–"
AGGREGATION = {
    "clean": "clean (every statistic over the cases alone; sd with n − 1)",
    "synapse2022": "synapse2022 (as on the BraTS 2021/22 platform: each statistic was computed "
    "over a table that included the statistics before it, so only the mean is clean)",
}
PROBLEMS = {
    "mismatched": "scored as a mismatch, because the prediction is not on the image's grid",
    "failed": "not scored, because of an error",
    "missing": "not scored, because there is no prediction",
}


def heading(metric: str) -> str:
    """Heading of a metric, with its unit."""
    row = metrics.find(metric)
    return row.title if row else metric


def cell(value: float | None, metric: str) -> str:
    """Number as printed: two decimals, per cent for ratios, a dash if undefined."""
    if value is None or value != value:
        return MISSING
    row = metrics.find(metric)
    return f"{value * (row.factor if row else 1.0):.2f}"


def grid(summary: Mapping[str, Any], metric: str, group: str | None = None) -> list[list[str]]:
    """Table of one metric as text: a heading row, one row per statistic, and n.

    Over all cases, or over those of a group.
    """
    statistics = (summary if group is None else summary["groups"][group])["statistics"]
    columns = [statistics.get(f"{metric}_{r}", {}) for r in summary["regions"]]
    rows = [[heading(metric), *summary["regions"]]]
    for key, name in STATISTICS.items():
        rows.append([name, *(cell(column.get(key), metric) for column in columns)])
    return [*rows, ["n", *(_count(column) for column in columns)]]


def _count(column: Mapping[str, Any]) -> str:
    undefined = column.get("n_nan", 0)
    return f"{column.get('n', 0)}" + (f" (+{undefined} undefined)" if undefined else "")


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts (name, text) that a reader needs to compare the numbers with others'."""
    definitions, aggregation = summary["definitions"], summary.get("aggregation", MISSING)
    return [
        ("Metric profile", summary.get("profile", MISSING)),
        *((heading(metric), text) for metric, text in definitions.items()),
        ("Aggregation", AGGREGATION.get(aggregation, aggregation)),
        ("Cases", str(summary["n_cases"])),
        *((words(name), str(value)) for name, value in summary.get("provenance", {}).items()),
    ]


def plain(table: Mapping[str, Any]) -> list[list[str]]:
    """Table of a challenge as text, see `challenges.base.Table`: four significant digits."""

    def text(value: Any) -> str:
        if value is None or value != value:
            return MISSING
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return [list(table["columns"]), *([text(value) for value in row] for row in table["rows"])]


def words(name: str) -> str:
    """Name of a field as a title."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def problems(summary: Mapping[str, Any]) -> list[tuple[str, Sequence[Sequence[str]]]]:
    """Cases that were not scored as usual: (what happened, [[case id, message], ...])."""
    found = [(text, summary.get(kind, [])) for kind, text in PROBLEMS.items()]
    return [(f"{len(cases)} of the cases {text}", cases) for text, cases in found if cases]


def markdown(summary: Mapping[str, Any]) -> str:
    """Content of table.md."""
    lines = [f"# {_one_line(summary['challenge'])}: {summary['n_cases']} cases", ""]
    for text, cases in problems(summary):
        lines += [f"**{text}:**", ""]
        lines += [f"- {_one_line(case)}: {_one_line(note)}" for case, note in cases] + [""]
    for metric in summary["definitions"]:
        lines += markdown_table(grid(summary, metric))
    for group, found in summary.get("groups", {}).items():
        lines += [f"## {_one_line(group)}: {found['n_cases']} cases", ""]
        for metric in summary["definitions"]:
            lines += markdown_table(grid(summary, metric, group))
    for table in summary.get("tables", []):
        if table["shown"]:
            lines += [f"## {_one_line(table['title'])}", "", *markdown_table(plain(table))]
            lines += [f"- {_one_line(note)}" for note in table["notes"]] + [""]
    lines += [f"- {name}: {_one_line(text)}" for name, text in facts(summary)]
    return "\n".join(lines) + "\n"


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table and an empty one; the first row is the heading."""
    head, *body = [[_one_line(text) for text in row] for row in rows]
    rule = _row(["---"] + ["---:"] * (len(head) - 1))
    return [_row(head), rule, *map(_row, body), ""]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# What Markdown takes for a cell's end, a tag, a link or an escape.
_MARKUP = re.compile(r"\||<(?=[A-Za-z/!?])|\](?=[(\[])|\\(?=[!-/:-@\[-`{-~])")


def _one_line(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", shown(" ".join(str(text).split())))


def to_html(rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """Semantic HTML table; the first row and the first column are headings. Escapes all text."""
    head, *body = rows

    def escape(text: str) -> str:
        return html.escape(shown(text))

    out = ["<table>"]
    if caption:
        out.append(f"<caption>{escape(caption)}</caption>")
    out.append("<thead><tr>")
    out += [f'<th scope="col">{escape(text)}</th>' for text in head]
    out.append("</tr></thead>\n<tbody>")
    for first, *rest in body:
        cells = "".join(f"<td>{escape(text)}</td>" for text in rest)
        out.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    out.append("</tbody></table>")
    return "\n".join(out)
