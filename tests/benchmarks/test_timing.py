"""When two implementations count as the same."""

import time

import numpy as np
import pytest

pytest.importorskip("torch", reason="benchmarks compare with PyTorch (extra port)")

from benchmarks import timing


def results(error):
    """Numbers, the first of which is off by a part of the norm."""
    values = np.ones(100)
    values[0] += 10 * error
    return {"gradient:a": values}


@pytest.mark.parametrize("error,same", [(5e-5, True), (2e-4, False)])
def test_float32_is_compared_to_its_rounding(error, same):
    if same:
        assert timing.compare(results(error), results(0), "float32")[0] == pytest.approx(error)
        return
    with pytest.raises(timing.Disagreement, match="gradient:a: relative error 0.0002"):
        timing.compare(results(error), results(0), "float32")


@pytest.mark.parametrize("ours,theirs", [(4e-3, 2e-3), (2e-3, 4e-3), (9e-5, 1e-6)])
def test_where_rounding_moves_more_both_are_about_as_far_from_float64(ours, theirs):
    found = timing.compare(results(ours), results(-theirs), "float32", exact=results(0))
    assert found[0] == pytest.approx(max(ours, theirs))


@pytest.mark.parametrize("ours,theirs", [(7e-3, 2e-3), (2e-3, 7e-3), (2e-4, 1e-6)])
def test_neither_may_be_much_further_from_float64(ours, theirs):
    with pytest.raises(timing.Disagreement, match="more than 3 times as far"):
        timing.compare(results(ours), results(theirs), "float32", exact=results(0))


def test_the_limit_is_for_variants_that_compile():
    def contestant(seconds=0.0):
        time.sleep(seconds)
        return timing.Contestant("", lambda: None, lambda _: None, lambda: results(0))

    slow = {"eager": lambda: contestant(0.2), "compiled": lambda: contestant(0.2)}
    case = timing.Case(
        "network",
        "forward",
        "float32",
        lambda mode: contestant(),
        slow,
        compiling={"compiled"},
    )
    row = timing.measure(case, mode="auto", against=None, rounds=1, sample_s=0, limit_s=0.05)
    assert isinstance(row["variants_ms"]["eager"], float)
    assert row["variants_ms"]["compiled"] == "TimeoutError: compiling: more than 0.05 s"
