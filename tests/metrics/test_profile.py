import math

import numpy as np
import pytest

from crossdim_jax import metrics
from crossdim_jax.metrics import Metric, profile

OPTIONS = {"regions": ("R",), "spacing_mm": (2.0, 1.0, 1.0)}


@pytest.mark.parametrize("name", metrics.PROFILES)
def test_every_profile_defines_its_columns(name):
    chosen = metrics.PROFILES[name]
    truth = np.ones((2, 2, 2, 1), bool)
    for row in (
        chosen.score(truth, truth, **OPTIONS),
        chosen.mismatch((2, 2, 2), **OPTIONS),
        chosen.score(truth, truth, **OPTIONS, annotated=(False,)),
    ):
        assert [column.removesuffix("_R") for column in row] == list(chosen.definitions)
    assert chosen.name == name and all(chosen.definitions.values())
    assert all(math.isnan(value) for value in row.values())  # what is not annotated is not scored


def test_metrics_of_one_name_are_printed_alike_in_all_profiles():
    """A report has the name alone, so it could not tell them apart."""
    rows = [row for chosen in metrics.PROFILES.values() for row in chosen.metrics]
    for row in rows:
        found = metrics.find(row.name)
        assert (row.title, row.factor) == (found.title, found.factor)
    assert metrics.find("no such metric") is None


def test_a_mismatch_may_depend_on_the_size_of_the_volume(monkeypatch):
    far = Metric("far_mm", lambda p: p.diagonal_mm, "Far", "Diagonal.", mismatch=lambda d: 2 * d)
    monkeypatch.setattr(profile, "COMMON", (far,))
    truth = np.ones((2, 3, 4, 1), bool)
    chosen, diagonal = metrics.PROFILES["brats2022"], math.hypot(4, 3, 4)
    assert chosen.score(truth, truth, **OPTIONS)["far_mm_R"] == pytest.approx(diagonal)
    assert chosen.score(truth, truth[1:], **OPTIONS)["far_mm_R"] == pytest.approx(2 * diagonal)


def test_what_metrics_share_is_computed_once():
    calls = []
    pair = metrics.MaskPair(np.ones((2, 2), bool), np.ones((2, 2), bool), (1.0, 1.0))
    for _ in range(2):
        pair.once(calls.append)
    assert calls == [pair]
