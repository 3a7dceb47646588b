"""Statistics over rows of cases: mean, sd, median and quartiles of every column."""

from collections.abc import Mapping, Sequence

import numpy as np

from crossdim_jax.errors import check_name

STATISTICS = {  # in the order in which the BraTS platform appended them
    "mean": np.mean,
    "sd": lambda x: np.std(x, ddof=1) if x.size > 1 else float("nan"),
    "median": np.median,
    "q25": lambda x: np.percentile(x, 25),
    "q75": lambda x: np.percentile(x, 75),
}
MODES = {
    "clean": "each statistic over the cases alone",
    "synapse2022": "as the BraTS 2021/22 platform did: mean, sd, median, 25th and 75th percentile "
    "in this order, each over the cases and the statistics before it",
}


def aggregate(
    rows: Sequence[Mapping[str, float]], mode: str = "clean"
) -> dict[str, dict[str, float]]:
    """Mean, sd (ddof 1), median and quartiles (linear) of every column.

    rows: one mapping per case, all with the same keys. mode: "clean", or "synapse2022" for the
    quirk of the 2021/22 platform: its statistics were appended to the table one after another and
    each was computed over the table *including the rows before it*, so only the mean is clean.

    Returns {column: {"mean", "sd", "median", "q25", "q75", "n", "n_nan"}}: NaN values are left
    out and counted in `n_nan`; a statistic without enough values is NaN.
    """
    check_name("aggregate", mode, MODES)
    if not rows:
        raise ValueError("no rows to aggregate")
    columns = list(rows[0])
    for number, row in enumerate(rows):
        if set(row) != set(columns):
            odd = sorted(set(row) ^ set(columns))
            raise ValueError(f"row {number} and row 0 differ in their columns: {', '.join(odd)}")
    return {column: _describe([row[column] for row in rows], mode) for column in columns}


def _describe(values: Sequence[float], mode: str) -> dict[str, float]:
    everything = np.asarray(values, np.float64)
    known = everything[~np.isnan(everything)]
    result: dict[str, float] = {}
    table = known
    for name, statistic in STATISTICS.items():
        result[name] = float(statistic(table)) if known.size else float("nan")
        if mode == "synapse2022" and not np.isnan(result[name]):
            table = np.append(table, result[name])
    return result | {"n": int(known.size), "n_nan": int(everything.size - known.size)}
