import json

import numpy as np
import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.evaluation import postprocessing
from crossdim_jax.evaluation.postprocessing import FOREGROUND, Rule, keep_largest

STRUCTURES = {"liver": (1,), "spleen": (2,)}


def volume(**boxes):
    """Zeros, and boxes of a value: `volume(_1=[(z, y, x, edge), ...])`."""
    label = np.zeros((16, 16, 16), np.uint8)
    for name, places in boxes.items():
        for z, y, x, edge in places:
            label[z : z + edge, y : y + edge, x : x + edge] = int(name[1:])
    return label


TRUTH = volume(_1=[(0, 0, 0, 6)], _2=[(6, 0, 0, 4)])


def found(*pairs, structures=STRUCTURES):
    return postprocessing.find(lambda: iter(pairs), structures)


def test_only_the_largest_component_is_kept():
    label = volume(_1=[(0, 0, 0, 3), (10, 10, 10, 2)], _2=[(6, 6, 6, 1)])
    result = keep_largest(label, (1,))
    assert (result[:3, :3, :3] == 1).all() and not result[10:].any()
    assert result[6, 6, 6] == 2  # others are left alone
    assert label[10, 10, 10] == 1  # and so is the input
    np.testing.assert_array_equal(keep_largest(result, (1,)), result)


def test_corners_connect_and_equals_are_kept():
    touching = volume(_1=[(0, 0, 0, 2), (2, 2, 2, 1)])
    assert keep_largest(touching, (1,)) is touching
    twins = volume(_1=[(0, 0, 0, 2), (8, 8, 8, 2), (14, 0, 0, 1)])
    assert np.count_nonzero(keep_largest(twins, (1,))) == 16


def test_values_of_a_structure_are_one_mask():
    label = volume(_1=[(0, 0, 0, 3)], _2=[(3, 0, 0, 1), (12, 12, 12, 1)])
    np.testing.assert_array_equal(
        keep_largest(label, (1, 2)), volume(_1=[(0, 0, 0, 3)], _2=[(3, 0, 0, 1)])
    )


def test_nothing_is_found_where_nothing_would_be_better():
    assert found((TRUTH, TRUTH)) == ()
    scattered = volume(_1=[(0, 0, 0, 3), (10, 10, 10, 2)])
    assert found((scattered, scattered)) == ()


def test_islands_of_all_structures_lead_to_the_rule_of_the_foreground():
    islands = TRUTH.copy()
    islands[14, 14, 14], islands[14, 0, 14] = 1, 2
    [rule] = found((islands, TRUTH))
    assert (rule.name, rule.values) == (FOREGROUND, (1, 2))
    assert rule.before < rule.after == 1.0
    np.testing.assert_array_equal(postprocessing.apply(islands, [rule]), TRUTH)


def test_the_foregrounds_rule_may_harm_no_structure():
    """The spleen lies apart: the foreground's rule would remove it, that of the liver helps."""
    truth = volume(_1=[(0, 0, 0, 6)], _2=[(12, 12, 12, 1)])
    predicted = truth.copy()
    predicted[12, :4, :4] = 1
    [rule] = found((predicted, truth))
    assert (rule.name, rule.values) == ("liver", (1,))


def test_a_structures_rule_counts_on_the_means_over_all_cases():
    """In one case the second component is true, in two it is not."""
    two = volume(_1=[(0, 0, 0, 4), (9, 9, 9, 4)])
    good = volume(_1=[(0, 0, 0, 4)])
    island = volume(_1=[(0, 0, 0, 4), (12, 12, 12, 2)])
    only = {"liver": (1,)}
    twins = two.copy()
    twins[9:11] = 0
    assert found((twins, two), (island, good), structures=only) == ()
    rules = found((twins, two), *[(island, good)] * 9, structures=only)
    assert [rule.name for rule in rules] == [FOREGROUND]


def test_a_structure_that_is_nowhere_decides_nothing():
    islands = TRUTH.copy()
    islands[14, 14, 14] = 1
    with_tail = found((islands, TRUTH), structures={**STRUCTURES, "tail": (3,)})
    [rule], [without] = with_tail, found((islands, TRUTH))
    assert rule.name == FOREGROUND
    assert (rule.before, rule.after) == (without.before, without.after)


def test_a_gain_of_the_mean_does_not_outweigh_a_structures_loss():
    """Nineteen livers would gain, and one spleen that lies apart would be lost."""
    islands = TRUTH.copy()
    islands[12:, 12:, 12:] = 1
    apart = volume(_1=[(0, 0, 0, 6)], _2=[(12, 12, 12, 1)])
    rules = found(*[(islands, TRUTH)] * 19, (apart, apart))
    assert [rule.name for rule in rules] == ["liver"]


def test_a_record_gives_the_rules_back():
    rules = (Rule("a", (1, 2), 0.5, 0.75), Rule("b", (2,), 0.1, 0.2))
    record = json.loads(json.dumps(postprocessing.record(rules)))
    assert postprocessing.of_record(record, "p.json") == rules


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"keep_largest": 3},
        {"keep_largest": [3]},
        {"keep_largest": [{"name": "a", "values": [], "before": 0, "after": 1}]},
        {"keep_largest": [{"name": "a", "values": [0], "before": 0, "after": 1}]},
        {"keep_largest": [{"name": "a", "values": ["1"], "before": 0, "after": 1}]},
    ],
)
def test_a_damaged_record_is_refused(wrong):
    with pytest.raises(DataError, match="p.json"):
        postprocessing.of_record(wrong, "p.json")


def test_of_regions_one_within_the_other_the_inner_is_judged_after_the_outer():
    """Removing the island from the whole removes it from the core, which then needs no rule."""
    regions = {"whole": (1, 2), "core": (2,), "node": (3,)}
    truth = volume(_1=[(0, 0, 0, 6)], _2=[(6, 0, 0, 3)], _3=[(0, 12, 12, 2)])
    islands = truth.copy()
    islands[14, 14, 2] = 2
    assert [rule.name for rule in found((islands, truth), structures=regions)] == ["whole"]


def test_what_nobody_annotated_supports_no_rule():
    """An island where truth is unknown is no fault; one where it is known is."""
    truth = TRUTH.copy()
    truth[:, 10:] = 9
    islands = np.where(truth == 9, 0, truth)
    islands[14, 14, 14] = 1
    assert postprocessing.find(lambda: iter([(islands, truth)]), STRUCTURES, 9) == ()
    islands[14, 2, 14] = 1
    assert postprocessing.find(lambda: iter([(islands, truth)]), STRUCTURES, 9)
