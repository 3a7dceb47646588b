"""Statistics of a study, against outcomes drawn with a known truth and against hand calculation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from crossdim_jax.study import statistics

REPETITIONS = 400
# Points of Dice: SD of cases and of seeds, which pairing removes, and of a case in a run.
CASE, SEED, NOISE = 5.0, 1.0, 2.0
# World -> SD of what an arm's run adds to all cases, and of what an arm adds to a case in all runs.
WORLDS = {"noise alone": (0, 0), "runs differ": (1, 0), "cases differ": (0, 1.5), "both": (1, 1.5)}
SIZES = [(3, 12), (3, 40), (5, 12), (5, 40)]
ALL = list(itertools.product(WORLDS, SIZES))


def outcomes(world, seeds, cases, effect, repetitions=REPETITIONS):
    """Paired differences (repetitions, seeds, cases) of two arms whose true one is `effect`."""
    key = [seeds, cases, list(WORLDS).index(world), round(10 * effect)]
    rng = np.random.default_rng(key)
    run, case = WORLDS[world]

    def normal(sd, *shape):
        return sd * rng.normal(size=(repetitions, *shape))

    shared = 70 + normal(CASE, 1, cases) + normal(SEED, seeds, 1)

    def arm(mean):
        own = normal(run, seeds, 1) + normal(case, 1, cases) + normal(NOISE, seeds, cases)
        return mean + shared + own

    return arm(effect) - arm(0)


def sampling_error(share, repetitions=REPETITIONS):
    """Least and largest number of repetitions that chance explains, all but once in a thousand."""
    return stats.binom.interval(0.999, repetitions, share)


@pytest.mark.parametrize("effect", [1.3, 0.0])
def test_intervals_cover_the_truth_in_95_per_cent(effect):
    """In each world and size not less, and on average neither less nor more.

    With 0 as the truth: no difference gives false alarms in 5 %, of interval and p-value.
    """
    covered = {}
    for world, (seeds, cases) in ALL:
        low, high, p, _ = statistics.interval(outcomes(world, seeds, cases, effect))
        covers = (low <= effect) & (high >= effect)
        covered[world, seeds, cases] = int(covers.sum())
        if effect == 0:
            assert ((p < 0.05) == ~covers).all()
    fewest, _ = sampling_error(0.95)
    assert {key: n for key, n in covered.items() if n < fewest} == {}
    assert np.mean(list(covered.values())) / REPETITIONS == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("world", ["noise alone", "cases differ"])
def test_sign_flips_give_false_alarms_in_5_per_cent_of_other_cases(world):
    found = [
        (statistics.sign_flip(outcomes(world, *size, effect=0).mean(-2)) < 0.05).sum()
        for size in SIZES
    ]
    least, most = sampling_error(0.05, REPETITIONS * len(SIZES))
    assert least <= sum(found) <= most, found


def test_sign_flips_and_the_plain_bootstrap_miss_what_runs_differ_by():
    """Which is why nothing on the page is concluded from either."""
    d = outcomes("runs differ", 3, 40, effect=0)
    assert (statistics.sign_flip(d.mean(-2)) < 0.05).sum() > sampling_error(0.05)[1]
    low, high = statistics.bootstrap(d[:100])
    assert ((low <= 0) & (high >= 0)).sum() < sampling_error(0.95, 100)[0]


def test_the_interval_is_that_of_the_two_way_table():
    d = np.array([[1.0, 2.0, 4.0], [2.0, 5.0, 3.0]])
    low, high, p, degrees = statistics.interval(d)
    mean = 17 / 6
    ms_seed = 3 * ((7 / 3 - mean) ** 2 + (10 / 3 - mean) ** 2)
    ms_case = 2 * ((1.5 - mean) ** 2 + 2 * (3.5 - mean) ** 2) / 2
    rest = d - d.mean(1, keepdims=True) - d.mean(0) + mean
    ms_rest = (rest**2).sum() / 2
    total = ms_seed + ms_case - ms_rest
    free = total**2 / (ms_seed**2 / 1 + ms_case**2 / 2 + ms_rest**2 / 2)
    assert degrees == pytest.approx(max(free, 1))
    half = stats.t.ppf(0.975, degrees) * math.sqrt(total / 6)
    assert (low, high) == pytest.approx((mean - half, mean + half))
    assert p == pytest.approx(2 * stats.t.sf(mean / math.sqrt(total / 6), degrees))


def test_the_bootstrap_draws_seeds_and_cases_each_by_themselves(rng):
    """Its variance is that of Owen 2007 for means of rows and columns without a residual."""
    rows, columns = rng.normal(size=(2, 12))
    low, high = statistics.bootstrap(rows[:, None] + columns)
    sd = math.sqrt((rows.var() + columns.var()) / 12)
    assert high - low == pytest.approx(2 * 1.96 * sd, rel=0.04)


def test_of_one_seed_it_is_student_s_over_the_cases(rng):
    d = rng.normal(1, 2, (1, 9))
    low, high, p, degrees = statistics.interval(d)
    expected = stats.ttest_1samp(d[0], 0)
    assert (p, degrees) == pytest.approx((expected.pvalue, 8))
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval()))


def table(d, first=0):
    return {s: {f"c{first + i}": v for i, v in enumerate(row)} for s, row in enumerate(d)}


def nothing(d):
    return {seed: dict.fromkeys(row, 0.0) for seed, row in table(d).items()}


def test_pairs_are_of_the_same_seed_and_case(rng):
    d = rng.normal(size=(3, 5))
    base = rng.normal(size=(3, 5))
    found = statistics.difference(table(base + d), table(base))
    swapped = {s: dict(reversed(row.items())) for s, row in reversed(table(base).items())}
    assert statistics.difference(table(base + d), swapped) == found
    assert found.mean == pytest.approx(d.mean())
    assert (found.seeds, found.cases, found.pairs, found.over) == (3, 5, 15, "seeds and cases")
    assert (found.low, found.high) == pytest.approx(statistics.interval(d)[:2])
    assert list(found.seed_means.values()) == pytest.approx(d.mean(1))


def test_a_seed_of_one_arm_and_a_case_without_a_score_are_left_out(rng):
    d = rng.normal(size=(3, 12))
    scores = table(d)
    del scores[1]
    scores[2]["c4"] = math.nan
    found = statistics.difference(scores, nothing(d))
    assert (found.seeds, found.cases, found.pairs, found.left_out) == (2, 11, 22, 1)
    assert found.mean == pytest.approx(np.delete(d[[0, 2]], 4, 1).mean())
    assert found.few


def test_seeds_with_cases_of_their_own_count_once_each(rng):
    d = rng.normal(1, 1, (4, 6))
    scores = {s: table(d, first=10 * s)[s] for s in range(4)}
    reference = {s: dict.fromkeys(row, 0.0) for s, row in scores.items()}
    found = statistics.difference(scores, reference)
    assert (found.seeds, found.cases, found.pairs, found.over) == (4, 24, 24, "seeds")
    expected = stats.ttest_1samp(d.mean(1), 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(("seeds", "cases"), [(0, 0), (1, 1)])
def test_of_one_pair_or_none_there_is_no_interval(seeds, cases):
    d = np.ones((seeds, cases))
    found = statistics.difference(table(d), nothing(d))
    assert math.isnan(found.low) and math.isnan(found.p) and found.pairs == seeds * cases
    assert found.few


def test_equal_scores_differ_by_nothing():
    found = statistics.difference(nothing(np.ones((3, 12))), nothing(np.ones((3, 12))))
    assert (found.mean, found.low, found.high, found.p, found.p_permutation) == (0, 0, 0, 1, 1)


def test_sign_flips_are_all_of_few_values_and_never_0():
    assert statistics.sign_flip(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert statistics.sign_flip(np.array([1.0, -1.0])) == 1
    assert 0 < statistics.sign_flip(np.arange(1.0, 41)) < 1e-3


def test_holm_multiplies_by_how_many_are_left():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    adjusted = statistics.holm([math.nan, 0.6, 0.7])
    assert math.isnan(adjusted[0]) and adjusted[1:] == [1, 1]


def test_a_level_is_reached_by_the_running_mean_and_not_by_a_peak():
    steps = np.arange(10, 610, 10.0)  # 60 values: three are meaned
    dice = np.where(steps < 300, 0.4, 0.8)
    dice[5] = 1.0
    assert statistics.first_reached(steps, dice, 0.7) == 320
    assert math.isnan(statistics.first_reached(steps, dice, 0.9))
    assert math.isnan(statistics.first_reached(np.array([]), np.array([]), 0.1))
    assert statistics.first_reached(steps[:20], dice[:20], 0.9) == 60  # few: each by itself


def test_steps_are_compared_where_both_reach_the_level():
    nan = math.nan
    found = statistics.sooner({0: 20, 1: 50, 2: nan, 4: 1}, {0: 40, 1: 100, 2: 30, 3: nan})
    assert (found.steps, found.seeds, found.never, found.reference_never) == (-35, 2, 1, 0)
    assert found.ratio == pytest.approx(0.5)
