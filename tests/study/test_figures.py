"""Figures of a study: all arms can be told apart, and nothing lies outside the paper."""

import pytest

from crossdim_jax.study import figures

ARMS = [f"arm {i}" for i in range(28)]


def test_every_arm_has_looks_of_its_own():
    looks = figures.Looks(ARMS, "arm 3")
    assert len({tuple(looks[arm].values()) for arm in ARMS}) == len(ARMS)
    assert looks["arm 3"]["color"] == "black"


@pytest.mark.parametrize("letters", [1, 12, 30, 60])
def test_the_legend_is_within_the_figure(letters):
    figure, [[axes]] = figures._figure(4.0)
    for i in range(12):
        axes.plot([0, 1], [i, i], label=f"{i} {'instance_' * 7}"[:letters])
    figures._legend(figure, axes)
    figure.draw_without_rendering()
    [legend] = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
