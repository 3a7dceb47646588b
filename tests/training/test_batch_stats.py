"""Running statistics measured anew: averages of what each batch norm sees."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax.errors import ConfigError
from crossdim_jax.models.layers import Norm
from crossdim_jax.runtime import sharding
from crossdim_jax.training import batch_stats


class Net(nn.Module):
    """Two batch norms, of two decays; the second sees what the first makes."""

    norm: str = "batch"
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Conv(3, (3,) * (x.ndim - 2), use_bias=False, name="first")(x)
        x = Norm(self.norm, "silu", name="norm_1")(x, train=train)
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        x = nn.Conv(5, (1,) * (x.ndim - 2), name="second")(x)
        return Norm(momentum=0.5, name="norm_2")(x, train=train)


MESH = sharding.make_mesh(1)


@pytest.fixture
def batches(rng):
    return [rng.normal(1, 3, size=(2, 4, 5, 6, 2)).astype(np.float32) for _ in range(5)]


def start(model, value=7.0):
    """Variables whose running statistics are wrong on purpose."""
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 5, 6, 2)))
    wrong = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), variables["batch_stats"])
    return {"params": variables["params"], "batch_stats": wrong}


def seen_by_the_first(variables, images):
    """Per batch: mean and unbiased variance of what enters the first norm."""
    conv = nn.Conv(3, (3, 3, 3), use_bias=False)
    found = []
    for image in images:
        y = np.asarray(conv.apply({"params": variables["params"]["first"]}, image), np.float64)
        flat = y.reshape(-1, y.shape[-1])
        found.append((flat.mean(0), flat.var(0, ddof=1)))
    return found


def test_they_are_the_averages_over_batches_whatever_they_were(batches):
    model = Net()
    variables = start(model)
    stats, used = batch_stats.reestimate(model, variables, batches, MESH, patches=6)
    assert used == 6  # three batches of two; the others are not looked at
    seen = seen_by_the_first(variables, batches[:3])
    np.testing.assert_allclose(stats["norm_1"]["mean"], np.mean([m for m, _ in seen], 0), rtol=1e-4)
    np.testing.assert_allclose(stats["norm_1"]["var"], np.mean([v for _, v in seen], 0), rtol=1e-4)
    other, _ = batch_stats.reestimate(model, start(model, 0.3), batches, MESH, patches=6)
    jax.tree.map(np.testing.assert_array_equal, stats, other)


def test_later_norms_see_inputs_normalised_by_their_batch(batches):
    """One batch: evaluation with the new statistics is training's own output, at every layer."""
    model = Net()
    variables = start(model)
    stats, _ = batch_stats.reestimate(model, variables, batches[:1], MESH, patches=2)
    # Running variances are unbiased, training's own are not: the same but for n / (n - 1).
    count = batches[0].size // batches[0].shape[-1]
    for norm in stats.values():
        norm["var"] = norm["var"] * (count - 1) / count
    measured = {"params": variables["params"], "batch_stats": stats}
    found = model.apply(measured, batches[0])
    expected, _ = model.apply(variables, batches[0], train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_first_patch_of_zeros_counts_as_any_other(batches):
    """Nothing but background: without a bias, every entry of the first norm's statistics is 0."""
    model, images = Net(), [np.zeros_like(batches[0]), *batches[:2]]
    variables = start(model)
    stats, _ = batch_stats.reestimate(model, variables, images, MESH, patches=6)
    seen = seen_by_the_first(variables, images)
    assert not np.any(seen[0])
    np.testing.assert_allclose(stats["norm_1"]["mean"], np.mean([m for m, _ in seen], 0), rtol=1e-4)
    np.testing.assert_allclose(stats["norm_1"]["var"], np.mean([v for _, v in seen], 0), rtol=1e-4)


def test_patches_are_rounded_up_to_whole_batches(batches):
    _, used = batch_stats.reestimate(Net(), start(Net()), batches, MESH, patches=3)
    assert used == 4


def test_four_devices_measure_what_one_measures(batches):
    batches = [np.concatenate([batch, batch[::-1]]) for batch in batches]
    expected, _ = batch_stats.reestimate(Net(), start(Net()), batches, MESH, patches=8)
    for data, depth in ((4, 1), (1, 4), (2, 2)):
        mesh = sharding.make_mesh(data, depth)
        found, _ = batch_stats.reestimate(Net(), start(Net()), batches, mesh, patches=8)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.sharding.is_fully_replicated
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_dropout_follows_the_seed(batches):
    model = Net(rate=0.5)
    variables = start(model)
    first, again, other = (
        batch_stats.reestimate(model, variables, batches, MESH, patches=4, seed=seed)[0]
        for seed in (1, 1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.allclose(first["norm_2"]["var"], other["norm_2"]["var"])


def test_networks_without_statistics_and_too_few_patches_are_refused(batches):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(1)(x)

    plain = Plain().init(jax.random.key(0), batches[0])
    with pytest.raises(ConfigError, match="keeps none"):
        batch_stats.reestimate(Plain(), plain, batches, MESH, patches=2)
    with pytest.raises(ConfigError, match="asks for 11 patches, but there are 10"):
        batch_stats.reestimate(Net(), start(Net()), batches, MESH, patches=11)


def test_responses_that_overflow_are_named(batches):
    with pytest.raises(ConfigError, match="not finite"):
        batch_stats.reestimate(Net(), start(Net()), [batches[0] * 1e30], MESH, patches=2)


def test_moments_of_parts_combine_into_those_of_the_whole(rng):
    """The law of total variance, for parts of any size."""
    parts = [rng.normal(i, 1 + i, size=(n, 3)) for i, n in enumerate((5, 9, 2))]
    moments = {
        "mean": jnp.asarray([part.mean(0) for part in parts]),
        "var": jnp.asarray([part.var(0) for part in parts]),
        "count": jnp.asarray([float(len(part)) for part in parts]),
        "keep": jnp.full(3, 0.9),
    }
    found = batch_stats.combine({"norm": moments})["norm"]
    whole = np.concatenate(parts)
    np.testing.assert_allclose(found["mean"], whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], whole.var(0), rtol=1e-5)
    assert (found["count"], found["keep"]) == (16, jnp.float32(0.9))


def test_the_first_statistics_under_lookahead_are_averaged_then_forgotten_slowly():
    """Until as many were seen as the running average remembers."""
    running = {"norm": {"mean": jnp.full(1, 100.0), "var": jnp.full(1, 100.0)}}
    for n in range(12):
        now = {"mean": jnp.full(1, float(n)), "var": jnp.ones(1), "count": 8.0, "keep": 0.9}
        running = batch_stats.advance(running, {"norm": now}, jnp.asarray(3 * n), 3, 0)
        if n == 9:
            np.testing.assert_allclose(running["norm"]["mean"], np.mean(np.arange(10)), rtol=1e-5)
    expected = 0.9 * (0.9 * np.mean(np.arange(10)) + 0.1 * 10) + 0.1 * 11
    np.testing.assert_allclose(running["norm"]["mean"], expected, rtol=1e-5)
    np.testing.assert_allclose(running["norm"]["var"], 8 / 7, rtol=1e-5)
