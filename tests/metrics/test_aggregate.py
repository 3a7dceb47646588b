import math

import numpy as np
import pytest

from crossdim_jax.metrics import aggregate

VALUES = [0.9, 0.4, 0.7, 0.85]


def rows(values):
    return [{"dice_WT": v, "hd95_WT": 10 * v} for v in values]


def test_clean_statistics():
    table = aggregate(rows(VALUES))
    assert list(table) == ["dice_WT", "hd95_WT"]
    assert table["dice_WT"] == pytest.approx(
        {
            "mean": 0.7125,
            "sd": np.std(VALUES, ddof=1),
            "median": 0.775,
            "q25": 0.625,
            "q75": 0.8625,
            "n": 4,
            "n_nan": 0,
        }
    )


def test_synapse_statistics_see_the_rows_before_them():
    mean = 0.7125
    sd = np.std([*VALUES, mean], ddof=1)
    median = np.median([*VALUES, mean, sd])
    q25 = np.percentile([*VALUES, mean, sd, median], 25)
    q75 = np.percentile([*VALUES, mean, sd, median, q25], 75)
    found = aggregate(rows(VALUES), mode="synapse2022")["dice_WT"]
    assert found == pytest.approx(
        {"mean": mean, "sd": sd, "median": median, "q25": q25, "q75": q75, "n": 4, "n_nan": 0}
    )
    assert found["sd"] != aggregate(rows(VALUES))["dice_WT"]["sd"]


@pytest.mark.parametrize("mode", ["clean", "synapse2022"])
def test_nan_is_left_out_and_counted(mode):
    with_nan = aggregate(rows([*VALUES, math.nan]), mode)["dice_WT"]
    without = aggregate(rows(VALUES), mode)["dice_WT"]
    assert with_nan == without | {"n_nan": 1}


def test_one_case_has_no_sd_and_no_case_has_nothing():
    one = aggregate(rows([0.5]))["dice_WT"]
    assert math.isnan(one["sd"]) and one["median"] == one["q25"] == 0.5 and one["n"] == 1
    none = aggregate(rows([math.nan]))["dice_WT"]
    assert math.isnan(none["mean"]) and math.isnan(none["q75"]) and none["n"] == 0


def test_bad_input():
    with pytest.raises(ValueError, match="known: clean, synapse2022"):
        aggregate(rows(VALUES), "median")
    with pytest.raises(ValueError, match="no rows"):
        aggregate([])
    with pytest.raises(ValueError, match="hd95_WT"):
        aggregate([*rows(VALUES), {"dice_WT": 1.0}])
