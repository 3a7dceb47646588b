"""Running statistics of batch norms: their step in training, and measuring them anew.

An inflated network that starts with the 2D network's statistics is only normalised rightly where
its responses are the 2D network's. Where they are not, its own are measured before the first step.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax.errors import ConfigError
from crossdim_jax.runtime import sharding
from crossdim_jax.training.state import step_key
from crossdim_jax.weights.paths import flatten, unflatten

MOMENTS = ("mean", "var", "count", "keep")  # what `layers.Norm` writes of each batch


def reestimate(
    model: Any,
    variables: Mapping[str, Any],
    batches: Iterable[np.ndarray],
    mesh: jax.sharding.Mesh,
    *,
    patches: int,
    seed: int = 0,
) -> tuple[Any, int]:
    """The averages of every batch norm's statistics over patches, in train mode.

    Each batch is normalised by its own statistics at every layer, as in training, so one pass
    measures all layers. The result is what the running averages of training would converge to if
    the parameters stood still; what they were before does not enter. It depends on the
    parameters, the patches and the seed alone.

    Args:
      model: a Linen module, `apply(variables, image, train=True, rngs={"dropout": key},
        mutable=["moments"])`, whose batch norms are `layers.Norm`.
      variables: {"params": ..., "batch_stats": ...}, on the mesh.
      batches: this process's part of each batch of images, `(b, *spatial, c)`; as many are taken as
        hold that many patches, over all processes.
      mesh: from `sharding.make_mesh`.
      patches: how many, rounded up to whole batches.
      seed: of dropout.

    Returns:
      the new `batch_stats`, on the mesh, and the number of patches that were used.

    Raises:
      ConfigError: the model keeps no running statistics, there are fewer patches, or what they gave
        is not finite.
    """
    params, before = variables["params"], variables.get("batch_stats") or {}
    if not jax.tree.leaves(before):
        raise ConfigError(
            "running statistics cannot be re-estimated: this network keeps none (its norms measure "
            "their own); set the number of patches to 0, or choose norm=batch"
        )
    everywhere = sharding.replicated(mesh)

    measure = _measuring(model, mesh)
    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), out_shardings=everywhere)
    total, seen, count = None, 0, 0
    source = iter(batches)
    while seen < patches:
        if (images := next(source, None)) is None:
            raise ConfigError(f"re-estimation asks for {patches} patches, but there are {seen}")
        image = sharding.shard_batch({"image": images}, mesh)["image"]
        now = measure(params, before, image, step_key(seed, count))
        total = now if total is None else add(total, now)
        seen, count = seen + image.shape[0], count + 1
    stats = jax.tree.map(lambda sum: sum / count, total)
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(stats)):
        raise ConfigError(
            "re-estimated statistics are not finite: the network's responses overflow on these "
            "patches. Check the images' intensities, or inflate by mean instead of repeat."
        )
    return jax.device_put(stats, everywhere), seen


def combine(moments: Any) -> Any:
    """The moments of a batch from those of its parts, by the law of total variance.

    With n_i values of mean m_i and variance v_i in part i, m = sum_i n_i m_i / n and
    v = sum_i n_i (v_i + (m_i - m)^2) / n.

    Args:
      moments: the collection that `layers.Norm` writes, each leaf with the parts as first axis.
    """
    flat = flatten(moments)
    found = {}
    for path in (path.removesuffix("/count") for path in flat if path.endswith("/count")):
        mean, variance, count, keep = (flat[f"{path}/{name}"] for name in MOMENTS)
        total = jnp.sum(count)
        share = (count / total)[:, None]
        whole = jnp.sum(share * mean, 0)
        spread = jnp.sum(share * (variance + jnp.square(mean - whole[None])), 0)
        values = (whole, spread, total, keep[0])
        found |= {f"{path}/{name}": v for name, v in zip(MOMENTS, values, strict=True)}
    return unflatten(found)


def advance(
    running: Any, moments: Any, step: jax.Array, sync_period: int, since_sync: jax.Array
) -> Any:
    """The running statistics after one step of training.

    `keep * old + (1 - keep) * new`, where `new` has the unbiased variance. Under lookahead it is
    the slow parameters that are evaluated, so only steps are counted that begin with fast and slow
    ones equal: those after a synchronisation. As there are `sync_period` times fewer of them, the
    first ones are averaged, until the running average remembers as many: what the statistics were
    at the start does not enter.

    Args:
      running: the collection `batch_stats`.
      moments: of the whole batch, see `combine`.
      step: the number of updates made before.
      sync_period: of the lookahead; 0 for none.
      since_sync: the number of updates made since its last synchronisation, or since the start.
    """
    flat, now = flatten(running), flatten(moments)
    for path, new in _observed(moments).items():
        keep = now[f"{path}/keep"]
        if sync_period:
            keep = jnp.minimum(keep, 1 - 1 / (step // sync_period + 1))
            keep = jnp.where(since_sync == 0, keep, 1.0)
        for name, value in new.items():
            old = flat[f"{path}/{name}"]
            flat[f"{path}/{name}"] = jnp.where(keep == 1, old, keep * old + (1 - keep) * value)
    return unflatten(flat)


def _observed(moments: Any) -> dict[str, dict[str, jax.Array]]:
    """Path of each batch norm -> mean and unbiased variance of what it saw."""
    flat, found = flatten(moments), {}
    for path in (path.removesuffix("/count") for path in flat if path.endswith("/count")):
        mean, variance, count = (flat[f"{path}/{name}"] for name in ("mean", "var", "count"))
        found[path] = {"mean": mean, "var": variance * (count / jnp.maximum(count - 1, 1))}
    return found


def _measuring(model: Any, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """`(params, stats, image, key)` -> the statistics of that batch alone, in train mode."""
    everywhere = sharding.replicated(mesh)

    def measure(params, stats, image, key):
        _, changes = model.apply(
            {"params": params, "batch_stats": stats},
            image,
            train=True,
            rngs={"dropout": key},
            mutable=["moments"],
        )
        seen = _observed(changes["moments"]).items()
        return unflatten({f"{p}/{name}": v for p, new in seen for name, v in new.items()})

    return jax.jit(
        measure,
        in_shardings=(everywhere, everywhere, sharding.batched(mesh), everywhere),
        out_shardings=everywhere,
    )
