"""When two implementations count as the same."""

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
