import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crossdim_jax.errors import ConfigError
from crossdim_jax.training import optim, schedules
from crossdim_jax.weights.paths import flatten

PARAMS = {
    "encoder": {"conv": {"kernel": jnp.arange(1.0, 5.0), "bias": jnp.ones(2)}},
    "head": {"kernel": jnp.full(3, -2.0)},
}


def gradient(params, step):
    """Some gradient that depends on the parameters and on time."""
    return jax.tree.map(lambda p: 0.1 * p + np.sin(step + 1.0).astype(np.float32), params)


def run(optimizer, steps, params=PARAMS):
    params = optimizer.wrap(params)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    history = []
    for step in range(steps):
        grads = gradient(optim.fast(params), step)
        params, state = update(grads, state, params)
        history.append(params)
    return history


def numpy_nadam(p, steps, *, lr, b1, b2, eps, schedule_decay=None, sync=None, alpha=0.5):
    """Fast and slow weights after each step, written as in the papers, in float64."""
    p = np.asarray(p, np.float64)
    slow, m, v, product = p.copy(), 0 * p, 0 * p, 1.0
    for step in range(steps):
        t = step + 1
        g = 0.1 * p + np.sin(step + 1.0)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        if schedule_decay is None:
            look_ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        else:
            now, then = (b1 * (1 - 0.5 * 0.96 ** (i * schedule_decay)) for i in (t, t + 1))
            product *= now
            look_ahead = (1 - now) * g / (1 - product) + then * m / (1 - product * then)
        p = p - lr * look_ahead / (np.sqrt(v / (1 - b2**t)) + eps)
        if sync and t % sync == 0:
            slow = slow + alpha * (p - slow)
            p = slow.copy()
        yield p, slow


@pytest.mark.parametrize("schedule_decay", [None, 0.004, 1.0])
@pytest.mark.parametrize("sync", [None, 6])
def test_nadam_and_lookahead_follow_the_papers(schedule_decay, sync):
    rule = dict(b1=0.95, b2=0.99, eps=1e-5, schedule_decay=schedule_decay)
    optimizer = optim.make("nadam", 0.01, sync_period=sync, slow_step_size=0.5, **rule)
    history = run(optimizer, 20)
    leaf = PARAMS["encoder"]["conv"]["kernel"]
    for params, (fast, slow) in zip(
        history, numpy_nadam(leaf, 20, lr=0.01, sync=sync, **rule), strict=True
    ):
        ours = optim.fast(params)["encoder"]["conv"]["kernel"]
        np.testing.assert_allclose(ours, fast, rtol=1e-5)
        if sync:
            np.testing.assert_allclose(
                optim.slow(params)["encoder"]["conv"]["kernel"], slow, rtol=1e-5
            )


def test_slow_weights_move_only_at_a_sync_and_then_equal_the_fast():
    history = run(optim.make(learning_rate=0.01, sync_period=6), 12)
    for step, params in enumerate(history, 1):
        fast, slow = params.fast["head"]["kernel"], params.slow["head"]["kernel"]
        if step % 6 == 0:
            np.testing.assert_allclose(fast, slow, rtol=1e-6)
        else:
            assert (jnp.abs(fast - slow) > 1e-4).all()
    np.testing.assert_array_equal(history[4].slow["head"]["kernel"], PARAMS["head"]["kernel"])
    np.testing.assert_array_equal(
        history[5].slow["head"]["kernel"], history[10].slow["head"]["kernel"]
    )


def test_without_lookahead_fast_and_slow_are_the_parameters():
    optimizer = optim.make(sync_period=0)
    params = optimizer.wrap(PARAMS)
    assert optim.fast(params) is params and optim.slow(params) is params


def test_fast_and_slow_share_no_buffer():
    params = optim.make().wrap(PARAMS)  # or the donation of one would take the other with it
    for a, b in zip(jax.tree.leaves(params.fast), jax.tree.leaves(params.slow), strict=True):
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()


def test_schedule_is_flat_then_half_a_cosine():
    schedule = schedules.constant_then_cosine(
        1e-3, 1e-5, constant_epochs=40, epochs=90, steps_per_epoch=10
    )
    values = [float(schedule(step)) for step in (0, 399, 400, 650, 900, 5000)]
    middle = (1e-3 + 1e-5) / 2
    np.testing.assert_allclose(values, [1e-3, 1e-3, 1e-3, middle, 1e-5, 1e-5], rtol=1e-5)
    rates = [float(schedule(step)) for step in range(400, 901, 25)]
    assert (np.diff(rates) < 0).all()


def test_schedule_may_be_constant_throughout():
    schedule = schedules.constant_then_cosine(
        1e-3, 0, constant_epochs=5, epochs=5, steps_per_epoch=3
    )
    assert float(schedule(0)) == float(schedule(100)) == pytest.approx(1e-3)
    with pytest.raises(ConfigError, match="end <= start"):
        schedules.constant_then_cosine(1e-3, 1, constant_epochs=1, epochs=2, steps_per_epoch=3)


def test_the_learning_rate_follows_the_schedule():
    schedule = schedules.constant_then_cosine(
        0.1, 0.0, constant_epochs=1, epochs=2, steps_per_epoch=2
    )
    history = run(optim.make(learning_rate=schedule, sync_period=None), 6)
    kernels = [np.asarray(p["head"]["kernel"]) for p in history]
    np.testing.assert_array_equal(kernels[-1], kernels[-2])  # at 0 from step 4 on
    assert (kernels[0] != kernels[1]).all()


def test_frozen_parameters_keep_their_value_and_others_do_not():
    optimizer = optim.make(freeze=["encoder/.*"], weight_decay=0.1, sync_period=2)
    params = run(optimizer, 5)[-1]
    jax.tree.map(np.testing.assert_array_equal, params.fast["encoder"], PARAMS["encoder"])
    jax.tree.map(np.testing.assert_array_equal, params.slow["encoder"], PARAMS["encoder"])
    assert (params.fast["head"]["kernel"] != PARAMS["head"]["kernel"]).all()


def test_weight_decay_reaches_what_matches():
    plain = run(optim.make(learning_rate=0.1, sync_period=None), 1)[-1]
    optimizer = optim.make(learning_rate=0.1, sync_period=None, weight_decay=0.5)
    decayed = run(optimizer, 1)[-1]
    difference = jax.tree.map(lambda a, b: np.asarray(a - b), plain, decayed)
    np.testing.assert_allclose(  # learning rate x decay x parameter
        difference["head"]["kernel"], 0.05 * PARAMS["head"]["kernel"], rtol=1e-4
    )
    assert not difference["encoder"]["conv"]["bias"].any()


@pytest.mark.parametrize("sync", [None, 6])
def test_a_step_overwrites_its_state_in_place(sync):
    """No array of the state is copied before it is updated: each is held once."""
    optimizer = optim.make(sync_period=sync, schedule_decay=0.004)
    grads = {"kernel": jnp.ones((64, 64))}
    params = optimizer.wrap({"kernel": jnp.ones((64, 64))})

    def update(grads, params, state):
        return optimizer.update(grads, state, params)

    arguments = (grads, params, optimizer.init(params))
    compiled = jax.jit(update, donate_argnums=(1, 2)).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < grads["kernel"].nbytes / 10


def test_clipping_limits_the_gradient_norm():
    # The first Nadam step forgets the scale of the gradient, so look at the moments instead.
    optimizer = optim.make(clip_norm=0.5, sync_period=None)
    _, state = optimizer.update(gradient(PARAMS, 0), optimizer.init(PARAMS), PARAMS)
    mu = next(s.mu for s in state if hasattr(s, "mu"))
    np.testing.assert_allclose(optax.tree.norm(mu) / (1 - 0.95), 0.5, rtol=1e-5)


def test_a_norm_of_0_does_not_clip_and_a_schedule_of_0_is_constant():
    grads = gradient(PARAMS, 0)

    def update(**options):
        optimizer = optim.make(sync_period=None, **options)
        return optimizer.update(grads, optimizer.init(PARAMS), PARAMS)[0]

    jax.tree.map(np.testing.assert_array_equal, update(clip_norm=0), update())
    constant = update(schedule_decay=0)
    nearly = update(schedule_decay=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), constant, nearly)


@pytest.mark.parametrize("field", ["freeze", "decay"])
def test_a_pattern_that_matches_nothing_is_an_error(field):
    optimizer = optim.make(weight_decay=0.1, sync_period=None, **{field: ["encodr/.*"]})
    with pytest.raises(ConfigError, match="encodr"):
        params = optimizer.wrap(PARAMS)
        optimizer.update(gradient(params, 0), optimizer.init(params), params)


def test_unknown_names_list_the_known():
    with pytest.raises(ConfigError, match="known: nadam, adam"):
        optim.make("sgdd")
    with pytest.raises(ConfigError, match="belongs to nadam"):
        optim.make("adam", schedule_decay=0.004)


def test_the_exponential_rate_falls_each_epoch_and_says_when_it_ends():
    """3e-4, 5 % less each epoch, down to 1e-5: 67 epochs, as the paper's recipe has it."""
    rate = schedules.exponential(3e-4, 1e-5, decay_per_epoch=0.95, steps_per_epoch=10)
    for epoch in range(66):
        for step in (10 * epoch, 10 * epoch + 9):
            np.testing.assert_allclose(rate(step), 3e-4 * 0.95**epoch, rtol=1e-5)
    last = schedules.epochs_until(3e-4, 1e-5, 0.95)
    assert last == 67 and rate(10 * last) == pytest.approx(1e-5)
    assert rate(10 * (last - 1)) > 1e-5 * (1 - 1e-6)
    assert schedules.epochs_until(1.0, 0.5, 0.5) == 1
    for lr, end, decay in ((1e-3, 0.0, 0.95), (1e-3, 1e-5, 1.0), (1e-5, 1e-3, 0.9)):
        with pytest.raises(ConfigError, match="factor between 0 and 1"):
            schedules.epochs_until(lr, end, decay)


def moved(history):
    """Per step, which of the encoder's kernel, its bias, and the head have moved since before."""
    leaves = [
        jax.tree.leaves(optim.fast(p)) for p in (optim.make(sync_period=0).wrap(PARAMS), *history)
    ]
    return [
        [bool((a != b).all()) for a, b in zip(one, other, strict=True)]
        for one, other in zip(leaves, leaves[1:], strict=False)
    ]


@pytest.mark.parametrize("sync", [0, 2])
def test_frozen_parameters_thaw_after_so_many_steps(sync):
    optimizer = optim.make(learning_rate=0.01, sync_period=sync, freeze=("encoder/.*",))
    assert moved(run(optimizer, 4)) == [[False, False, True]] * 4
    optimizer = optim.make(
        learning_rate=0.01, sync_period=sync, freeze=("encoder/.*",), freeze_steps=3
    )
    expected = [[False, False, True]] * 3 + [[True, True, True]] * 2
    assert moved(run(optimizer, 5)) == expected


def test_moments_start_where_the_freezing_ends():
    """As if the parameters had had no gradient before."""
    rule = {"learning_rate": 0.01, "sync_period": 0, "clip_norm": 0.5}
    frozen = optim.make(**rule, freeze=("encoder/.*",), freeze_steps=2)
    alone = {"head": PARAMS["head"]}
    together, apart = run(frozen, 2), run(optim.make(**rule), 2, alone)
    # The clipped norm is that of the parameters which are not frozen.
    np.testing.assert_allclose(together[1]["head"]["kernel"], apart[1]["head"]["kernel"])


@pytest.mark.parametrize("freeze", [(), ("head/.*",)])
def test_rates_scale_updates_and_the_last_pattern_counts(freeze):
    rule = {"learning_rate": 0.01, "sync_period": 0, "freeze": freeze}
    rates = (("encoder/.*", 0.5), (".*/bias", 0.0))
    plain, scaled = (run(optim.make(**rule, rates=r), 1)[0] for r in ((), rates))

    def step(found, path):
        return np.subtract(flatten(found)[path], flatten(PARAMS)[path])

    np.testing.assert_allclose(
        step(scaled, "encoder/conv/kernel"), 0.5 * step(plain, "encoder/conv/kernel"), rtol=1e-4
    )
    assert not step(scaled, "encoder/conv/bias").any()
    np.testing.assert_array_equal(step(scaled, "head/kernel"), step(plain, "head/kernel"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rates": (("decoder/.*", 0.1),)}, "decoder/.*"),
        ({"rates": (("head/.*", -1.0),)}, "0 or more"),
        ({"rates": ("head/.*", 0.1)}, "a pair of a pattern and a factor"),
        ({"rates": (("head/.*", "slow"),)}, "each factor a finite number"),
        ({"freeze": ("decoder/.*",), "freeze_steps": 2}, "decoder/.*"),
        ({"freeze_steps": 2}, "a pattern or more"),
        ({"freeze": ("head/.*",), "freeze_steps": 0}, "a length above 0"),
    ],
)
def test_patterns_and_lengths_that_do_nothing_are_refused(wrong, says):
    with pytest.raises(ConfigError, match=says):
        optimizer = optim.make(**wrong)
        optimizer.init(optimizer.wrap(PARAMS))
