import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import losses
from crossdim_jax.data import augment
from crossdim_jax.errors import ConfigError, WeightsError
from crossdim_jax.runtime import sharding
from crossdim_jax.training import initialise, optim
from crossdim_jax.training import step as train
from crossdim_jax.training.state import step_key
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.paths import flatten
from tests import toy

SHAPE = (1, 8, 6, 4, 1)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, 1)


def batch_of(mesh, seed=0, n=2):
    image, target = toy.make_arrays(seed, n)
    return sharding.shard_batch({"image": image, "target": target}, mesh)


def ported(scale=0.5):
    return Weights(
        {
            "params/encoder/kernel": np.full((3, 3, 3, 1, 4), scale, np.float32),
            "params/encoder/bias": np.full(4, scale, np.float32),
        }
    )


def test_ported_weights_are_in_before_the_optimiser_starts(mesh, capsys):
    state = initialise.init_state(
        toy.ToyNet(), optim.make(), SHAPE, mesh, seed=0, weights=ported(), skip=["encoder/bias"]
    )
    for params in (state.params.fast, state.params.slow):
        assert (params["encoder"]["kernel"] == 0.5).all() and not params["encoder"]["bias"].any()
        assert jnp.std(params["head"]["kernel"]) > 0
    shown = capsys.readouterr().out
    assert "encoder" in shown and f"{112 + 218:,}" in shown and "1 tensors from the file" in shown


def test_weights_of_another_shape_are_refused(mesh):
    wrong = Weights({**ported().arrays, "params/encoder/bias": np.zeros(5, np.float32)})
    with pytest.raises(WeightsError, match="encoder/bias"):
        initialise.init_state(
            toy.ToyNet(), optim.make(), SHAPE, mesh, seed=0, weights=wrong, say=None
        )


def test_a_misspelt_pattern_stops_the_start(mesh):
    optimizer = optim.make(freeze=["encodr/.*"])
    with pytest.raises(ConfigError, match="encodr"):
        initialise.init_state(toy.ToyNet(), optimizer, SHAPE, mesh, seed=0, say=None)


def test_the_seed_decides_the_parameters(mesh):
    kernels = [
        initialise.init_state(
            toy.ToyNet(), optim.make(sync_period=None), SHAPE, mesh, seed=seed, say=None
        ).params["head"]["kernel"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).any()


def test_no_two_arrays_of_the_state_share_a_buffer(mesh):
    state, _, _ = toy.make_run(mesh=mesh)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_the_state_holds_arrays_only_and_no_key(mesh):
    state, _, _ = toy.make_run(mesh=mesh)
    for leaf in jax.tree.leaves(state):
        assert isinstance(leaf, jax.Array)
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def test_randomness_depends_on_the_step_and_nothing_else():
    data = [jax.random.key_data(step_key(7, step)) for step in (3, jnp.int32(3), 4)]
    np.testing.assert_array_equal(data[0], data[1])
    assert (data[0] != data[2]).any()


def test_dropout_draws_anew_at_every_step_and_alike_at_the_same(mesh):
    state, step, _ = toy.make_run(toy.ToyNet(rate=0.5), mesh=mesh, learning_rate=0.0)
    host = jax.device_get(state)
    seen = []
    for number in (0, 1, 1):
        state = jax.device_put(host._replace(step=np.int32(number)), sharding.replicated(mesh))
        seen.append(float(step(state, batch_of(mesh))[1]["loss"][0]))
    assert seen[0] != seen[1] == seen[2]


def test_dropout_draws_anew_for_every_micro_batch(mesh):
    image, target = (np.repeat(array, 2, 0) for array in toy.make_arrays(0, 1))
    sums = []
    for samples in (1, 2):  # alike, one in each micro-batch
        state, step, _ = toy.make_run(toy.ToyNet(rate=0.5), mesh=mesh, accumulate=samples)
        batch = {"image": image[:samples], "target": target[:samples]}
        sums.append(float(step(state, sharding.shard_batch(batch, mesh))[1]["loss"][0]))
    assert abs(sums[1] - 2 * sums[0]) > 1e-3 * sums[0]


def test_the_loss_falls_and_the_state_is_donated(mesh):
    state, step, _ = toy.make_run(mesh=mesh, learning_rate=0.05)
    seen = []
    for _ in range(25):
        before = state
        state, metrics = step(state, batch_of(mesh))
        seen.append(float(metrics["loss"][0] / metrics["loss"][1]))
    assert seen[-1] < 0.7 * seen[0] and int(state.step) == 25
    assert before.params.fast["head"]["kernel"].is_deleted()
    assert metrics["dice"][0].shape == metrics["dice"][1].shape == (2,)
    assert float(metrics["learning_rate"][0]) == pytest.approx(0.05)


def test_the_gradient_is_that_of_the_mean_loss_at_the_fast_weights(mesh):
    model = toy.ToyNet()
    optimizer = optim.make(learning_rate=0.0, sync_period=4)
    state = initialise.init_state(model, optimizer, SHAPE, mesh, seed=0, say=None)
    fast = jax.tree.map(lambda x: x + 0.1, state.params.fast)
    state = state._replace(params=state.params._replace(fast=fast))
    image, target = toy.make_arrays(0, 2)

    def mean_loss(params):
        logits = model.apply({"params": params}, image)
        total, count = losses.dice_bce(logits, target)["loss"]
        return total / count

    gradient = flatten(jax.grad(mean_loss)(fast))
    step = train.jit_step(train.make_train_step(model, optimizer, losses.dice_bce, seed=0), mesh)
    state, metrics = step(state, batch_of(mesh))
    moments = flatten(state.opt_state.fast_state[0].mu)
    for path, value in gradient.items():
        np.testing.assert_allclose(moments[path] / (1 - 0.95), value, rtol=1e-3, atol=1e-6)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in gradient.values()))
    np.testing.assert_allclose(metrics["grad_norm"][0], norm, rtol=1e-4)


def test_bfloat16_compute_keeps_float32_parameters(mesh):
    model = toy.ToyNet(dtype=jnp.bfloat16)
    state, step, _ = toy.make_run(model, mesh=mesh)
    state, metrics = step(state, batch_of(mesh))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    assert metrics["loss"][0].dtype == jnp.float32


def test_a_batch_with_nothing_labelled_changes_nothing_but_the_clock(mesh):
    model, optimizer = toy.ToyNet(), optim.make(sync_period=None)
    state = initialise.init_state(model, optimizer, SHAPE, mesh, seed=0, say=None)
    before = jax.device_get(state.params)
    step = train.make_train_step(model, optimizer, losses.dice_bce, seed=0)
    image, target = toy.make_arrays(0, 2)
    unlabelled = {"image": image, "target": target, "weights": np.zeros((2, 2), np.float32)}
    unlabelled = sharding.shard_batch(unlabelled, mesh)
    state, metrics = train.jit_step(step, mesh)(state, unlabelled)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)
    assert int(state.step) == 1 and float(metrics["loss"][1]) == 0


def statistics_of(variables, image):
    """Mean and unbiased variance of what enters the toy's norm, whose input has no norm before."""
    kernel = variables["encoder"]["kernel"]
    y = nn.Conv(4, (3, 3, 3), use_bias=False).apply({"params": {"kernel": kernel}}, image)
    flat = np.asarray(y, np.float64).reshape(-1, 4)
    return flat.mean(0), flat.var(0, ddof=1)


@pytest.mark.parametrize("data", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_running_statistics_are_those_of_the_whole_batch(accumulate, data):
    """However it is spread over devices and micro-batches; one step of their decay, 0.9."""
    state, step, mesh = toy.make_run(
        toy.ToyNet(norm=True),
        mesh=sharding.make_mesh(data),
        accumulate=accumulate,
        sync_period=0,
    )
    image, target = toy.make_arrays(0, 4)
    image[:2] += 3.0  # parts that differ: their variances alone would be too small
    expected = statistics_of(jax.device_get(state.params), image)
    state, _ = step(state, sharding.shard_batch({"image": image, "target": target}, mesh))
    found = state.batch_stats["norm"]
    np.testing.assert_allclose(found["mean"], 0.1 * expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * expected[1], rtol=1e-4)


def test_running_statistics_are_those_of_the_slow_weights():
    """Under lookahead they are taken where fast and slow weights are equal, and nowhere else."""
    state, step, mesh = toy.make_run(toy.ToyNet(norm=True), sync_period=3)
    seen, stats = [], []
    for seed in range(5):
        image, target = toy.make_arrays(seed, 4)
        slow = jax.device_get(state.params.slow)
        seen.append(statistics_of(slow, image))
        state, _ = step(state, sharding.shard_batch({"image": image, "target": target}, mesh))
        stats.append(jax.device_get(state.batch_stats["norm"]))
    for i, name in enumerate(("mean", "var")):
        first, second = seen[0][i], (seen[0][i] + seen[3][i]) / 2
        for step_, expected in enumerate((first, first, first, second, second)):
            np.testing.assert_allclose(stats[step_][name], expected, rtol=1e-4, atol=1e-5)


def test_augmentation_draws_from_seed_and_step_apart_from_dropout(mesh):
    """A step is one on what the augmentation makes of the batch; a resumed run makes the same."""
    model, optimizer = toy.ToyNet(rate=0.5), optim.make(sync_period=None)
    augmentation = augment.make(augment.Settings(probability=1.0, flip=(0,)))
    image, target = toy.make_arrays(0, 2, (8, 6))
    state = initialise.init_state(model, optimizer, image[:1].shape, mesh, seed=0, say=None)
    start = jax.device_get(state)
    steps = [
        train.jit_step(
            train.make_train_step(
                model, optimizer, losses.dice_bce, seed=5, augmentation=augmentation_or_not
            ),
            mesh,
        )
        for augmentation_or_not in (augmentation, None)
    ]

    def loss(step, number, image, target):
        batch = sharding.shard_batch({"image": image, "target": target}, mesh)
        state = start._replace(step=np.int32(number))
        return float(step(jax.device_put(state, sharding.replicated(mesh)), batch)[1]["loss"][0])

    first, third, again = (loss(steps[0], number, image, target) for number in (0, 3, 3))
    assert first != third == again
    key = jax.random.fold_in(step_key(5, 3), augment.STREAM)
    changed = jax.jit(augmentation)(key, image, target)
    assert loss(steps[1], 3, *changed) == pytest.approx(third, rel=1e-5)
    assert loss(steps[1], 3, image, target) != pytest.approx(third, rel=1e-3)


def test_a_step_is_one_pure_function_however_it_is_compiled(mesh, monkeypatch):
    """Both programs are compiled before the first is run, once, and memory is given back."""
    # A rate that no other test has: programs of equal steps are shared.
    model, optimizer, events = toy.ToyNet(rate=0.23), optim.make(), []
    monkeypatch.setattr(train.memory, "give_back", lambda: events.append("give back"))
    state = initialise.init_state(model, optimizer, SHAPE, mesh, seed=0, say=None)
    pure = train.make_train_step(model, optimizer, losses.dice_bce, seed=0)
    jitted = train.jit_step(pure, mesh)
    compile_both = jitted.compile

    def compiling(*args):
        events.append("compile")
        compiled = compile_both(*args)
        run = lambda name: lambda *args: (events.append(name), getattr(compiled, name)(*args))[1]  # noqa: E731
        return dataclasses.replace(compiled, gradient=run("gradient"), update=run("update"))

    monkeypatch.setattr(jitted, "compile", compiling)
    before = jax.device_get(state)
    expected, metrics = pure(state, batch_of(mesh))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
    found, again = jitted(state, batch_of(mesh))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.device_get((found, again)), jax.device_get((expected, metrics)),
    )  # fmt: skip
    jitted(found, batch_of(mesh, 1))
    assert events == ["compile", "give back", *["gradient", "update"] * 2]
