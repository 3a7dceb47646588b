import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import losses

# Compiled, as training does: each a program instead of dozens of small ones.
dice_bce, dice_ce = jax.jit(losses.dice_bce), jax.jit(losses.dice_ce)
hard_dice = jax.jit(losses.hard_dice, static_argnames="activation")


@pytest.fixture
def pair(rng):
    logits = rng.normal(size=(3, 4, 5, 6, 2)).astype(np.float32) * 3
    target = (rng.random((3, 4, 5, 6, 2)) < 0.3).astype(np.uint8)
    return logits, target


def mean(sums, name="loss"):
    return float(sums[name][0] / sums[name][1])


def test_dice_bce_is_its_formula_in_float64(pair):
    logits, target = pair
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    axes = (1, 2, 3)
    dice = 1 - 2 * (p * target).sum(axes) / (p.sum(axes) + target.sum(axes) + 1e-5)
    entropy = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean(axes)
    sums = dice_bce(jnp.asarray(logits), jnp.asarray(target))
    np.testing.assert_allclose(mean(sums), (dice + entropy).mean(), rtol=1e-5)
    np.testing.assert_allclose(mean(sums, "dice_loss"), dice.mean(), rtol=1e-5)
    np.testing.assert_allclose(mean(sums, "cross_entropy"), entropy.mean(), rtol=1e-5)


def test_a_perfect_prediction_costs_nothing_and_its_opposite_much(pair):
    target = jnp.asarray(pair[1])
    right = 200.0 * (target.astype(jnp.float32) - 0.5)
    assert mean(dice_bce(right, target)) < 1e-5
    assert mean(dice_bce(-right, target)) > 100  # and finite: 100 nats a voxel
    assert np.isfinite(mean(dice_bce(1e4 * right, target)))


@pytest.mark.parametrize("level", [-8.0, 0.0, 8.0, 100.0])
def test_an_empty_region_pushes_every_prediction_down(level):
    logits = jnp.full((1, 4, 4, 4, 1), level)
    empty = jnp.zeros((1, 4, 4, 4, 1), jnp.uint8)

    def dice_only(x):
        return losses.soft_dice(jax.nn.sigmoid(x), empty).sum()

    for loss in (dice_only, lambda x: dice_bce(x, empty)["loss"][0]):
        value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        if level < 100:  # beyond, the sigmoid's own slope is 0 in float32
            assert (gradient > 0).all()
    assert 0 <= dice_only(logits) <= 1


def test_sums_and_counts_of_parts_add_up_to_the_whole(pair):
    logits, target = map(jnp.asarray, pair)
    for function in (dice_bce, hard_dice):
        whole = function(logits, target)
        parts = [function(logits[i:j], target[i:j]) for i, j in ((0, 1), (1, 3))]
        added = jax.tree.map(lambda a, b: a + b, *parts)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, whole)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_region_of_weight_zero_neither_costs_nor_counts(pair, per_sample):
    logits, target = map(jnp.asarray, pair)
    weights = jnp.array([1.0, 0.0])
    weights = jnp.tile(weights, (3, 1)) if per_sample else weights
    alone = dice_bce(logits[..., :1], target[..., :1])
    both = dice_bce(logits, target, weights)
    np.testing.assert_allclose(both["loss"], alone["loss"], rtol=1e-6)
    assert hard_dice(logits, target, weights)["dice"][1].tolist() == [3.0, 0.0]
    gradient = jax.jit(jax.grad(lambda x: dice_bce(x, target, weights)["loss"][0]))(logits)
    assert not gradient[..., 1].any() and gradient[..., 0].any()


def test_arithmetic_is_float32_whatever_the_logits(pair):
    logits, target = map(jnp.asarray, pair)
    rounded = logits.astype(jnp.bfloat16)
    low = dice_bce(rounded, target)
    assert low["loss"][0].dtype == jnp.float32
    # Equal to the loss of the rounded logits, which bfloat16 sums would miss by a percent.
    high = dice_bce(rounded.astype(jnp.float32), target)
    np.testing.assert_array_equal(low["loss"], high["loss"])


def test_hard_dice_counts_voxels(pair):
    logits, target = pair
    predicted = logits > 0
    both = 2 * (predicted & (target > 0)).sum((1, 2, 3))
    expected = both / (predicted.sum((1, 2, 3)) + target.sum((1, 2, 3)))
    total, count = hard_dice(jnp.asarray(logits), jnp.asarray(target))["dice"]
    np.testing.assert_allclose(total / count, expected.mean(0), rtol=1e-6)


def test_hard_dice_of_nothing_in_nothing_is_one():
    empty = jnp.zeros((2, 3, 3, 1))
    assert hard_dice(empty - 1, empty)["dice"][0].tolist() == [2.0]
    assert hard_dice(empty + 1, empty)["dice"][0].tolist() == [0.0]


def test_two_and_three_dimensions_share_the_code(pair):
    logits, target = map(jnp.asarray, pair)
    flat = dice_bce(logits.reshape(3, 20, 6, 2), target.reshape(3, 20, 6, 2))
    np.testing.assert_allclose(flat["loss"], dice_bce(logits, target)["loss"], rtol=1e-6)


def test_an_unknown_loss_lists_the_known():
    assert losses.get("dice_bce") == (losses.dice_bce, "sigmoid")
    with pytest.raises(ValueError, match="known: dice_bce"):
        losses.get("dice")


@pytest.fixture
def classes(rng):
    """Logits and one-hot truth of four classes, in slices."""
    logits = rng.normal(size=(3, 6, 5, 4)).astype(np.float32) * 2
    truth = rng.integers(0, 4, (3, 6, 5))
    return jnp.asarray(logits), jnp.asarray(np.eye(4, dtype=np.uint8)[truth])


def test_dice_ce_is_its_formula_in_float64(classes):
    logits, target = (np.asarray(x, np.float64) for x in classes)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    overlap, size = (p * target).sum((1, 2)), (p + target).sum((1, 2))
    dice = (1 - 2 * overlap / (size + 1e-5)).mean(-1)
    entropy = -(target * np.log(p)).sum(-1).mean((1, 2))
    sums = dice_ce(*classes)
    np.testing.assert_allclose(mean(sums), (dice + entropy).mean(), rtol=1e-5)
    np.testing.assert_allclose(mean(sums, "dice_loss"), dice.mean(), rtol=1e-5)
    np.testing.assert_allclose(mean(sums, "cross_entropy"), entropy.mean(), rtol=1e-5)


def certain(truth):
    """Logits of a network that is sure of these classes, (b, y, x) indices of 4."""
    return 40.0 * jnp.asarray(np.eye(4, dtype=np.float32)[truth])


def test_an_unlabelled_class_is_no_error_and_a_labelled_one_missed_is():
    """Of classes 0 to 3 only 1 is annotated: what lies in 2 and 3 is not known to be absent."""
    truth = np.zeros((1, 4, 4), int)
    truth[0, :2] = 1
    target = jnp.asarray(np.eye(4, dtype=np.uint8)[truth])
    weights = jnp.asarray([[1.0, 1.0, 0.0, 0.0]])
    kidney, missed, hidden = truth.copy(), np.zeros_like(truth), truth.copy()
    kidney[0, 3] = 2  # predicted where the truth says background
    hidden[0, 1] = 2  # predicted where the truth says class 1
    cost = {
        name: mean(dice_ce(certain(p), target, weights))
        for name, p in (("right", truth), ("kidney", kidney), ("missed", missed), ("on", hidden))
    }
    assert cost["right"] < 1e-4 and cost["kidney"] < 1e-4
    assert cost["missed"] > 1 and cost["on"] > 1
    assert mean(dice_ce(certain(kidney), target)) > 1  # were they known to be absent
    gradient = jax.jit(jax.grad(lambda x: dice_ce(x, target, weights)["loss"][0]))(certain(kidney))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() < 1e-5


def test_merging_is_the_same_as_a_network_without_those_classes(classes):
    """Its background's logit is the logarithm of the merged probability."""
    logits, target = classes
    weights = jnp.asarray([1.0, 1.0, 0.0, 0.0])
    logs = jax.nn.log_softmax(logits)
    fewer = jnp.stack([jax.nn.logsumexp(logs[..., [0, 2, 3]], -1), logs[..., 1]], -1)
    known = jnp.stack([target[..., [0, 2, 3]].sum(-1), target[..., 1]], -1)
    found, expected = dice_ce(logits, target, weights), dice_ce(fewer, known)
    for name in ("loss", "dice_loss", "cross_entropy"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_the_most_probable_class_is_predicted_and_the_background_not_scored(classes):
    logits, target = classes
    total, count = hard_dice(logits, target, activation="softmax")["dice"]
    best, truth = np.asarray(logits).argmax(-1), np.asarray(target).argmax(-1)
    for i, c in enumerate((1, 2, 3)):
        expected = [
            2 * ((b == c) & (t == c)).sum() / ((b == c).sum() + (t == c).sum())
            for b, t in zip(best, truth, strict=True)
        ]
        np.testing.assert_allclose(total[i], sum(expected), rtol=1e-6)
    assert total.shape == count.shape == (3,)


def _with_unknown(rng, softmax):
    """Logits, full targets, int8 targets with -1 where a third of the voxels is not annotated."""
    logits = rng.normal(size=(2, 4, 6, 3)).astype(np.float32) * 2
    if softmax:
        target = np.eye(3, dtype=np.uint8)[rng.integers(0, 3, (2, 4, 6))]
    else:
        target = (rng.random((2, 4, 6, 3)) < 0.4).astype(np.uint8)
    known = np.ones((2, 4, 6), bool)
    known[:, :, ::3] = False
    return logits, target, np.where(known[..., None], target.astype(np.int8), -1), known


@pytest.mark.parametrize(
    ("loss", "softmax"), [(dice_ce, True), (dice_bce, False)], ids=["ce", "bce"]
)
def test_voxels_that_nobody_annotated_count_as_if_they_were_not_there(rng, loss, softmax):
    logits, target, partial, known = _with_unknown(rng, softmax)
    activation = "softmax" if softmax else "sigmoid"

    def terms(logits, target):
        metrics = hard_dice(logits, target, activation=activation)
        return jax.tree.map(np.asarray, loss(jnp.asarray(logits), jnp.asarray(target)) | metrics)

    # The same voxels are known in each sample: what is left is an image without the others.
    left = (
        np.stack([array[known[0]] for array in logits]),
        np.stack([array[known[0]] for array in target]),
    )
    masked = terms(logits, partial)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), masked, terms(*left))
    # Where all is known, the type of the target makes no difference.
    whole = terms(logits, target.astype(np.int8))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, terms(logits, target)
    )

    def value_and_slope(target):
        program = jax.jit(jax.value_and_grad(lambda x: loss(x, jnp.asarray(target))["loss"][0]))
        return program(jnp.asarray(logits))

    _, slope = value_and_slope(partial)
    assert (np.asarray(slope)[~known] == 0).all() and (np.asarray(slope)[known] != 0).any()
    value, slope = value_and_slope(np.full(partial.shape, -1, np.int8))
    assert value == 0 and (slope == 0).all()


def test_a_class_that_is_not_annotated_and_voxels_that_are_not_go_together(rng):
    logits, target, partial, known = _with_unknown(rng, softmax=True)
    weights = jnp.asarray([1.0, 0.0, 1.0])
    left = (np.stack([array[known[0]] for array in part]) for part in (logits, target))
    expected = dice_ce(*map(jnp.asarray, left), weights)
    masked = dice_ce(jnp.asarray(logits), jnp.asarray(partial), weights)
    np.testing.assert_allclose(mean(masked), mean(expected), rtol=1e-5)
