"""Our side of the whole network: contestants from `crossdim_jax`, and the weights both sides get.

Never imports torch.
"""

import contextlib
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs
from benchmarks.timing import Contestant
from crossdim_jax import losses, models
from crossdim_jax.runtime import sharding
from crossdim_jax.training import optim
from crossdim_jax.training import step as train
from crossdim_jax.training.state import TrainState
from crossdim_jax.weights.paths import flatten, unflatten

TASKS = ("forward", "loss and gradient", "training step")

# Dozat's momentum schedule, which `torch.optim.NAdam` always has.
MOMENTUM = 0.95
OPTIMIZER = {"b1": MOMENTUM, "schedule_decay": 0.004}


NETWORKS = ("dxnet", "dsnet")
DSNET_DEPTH = 112  # slices, whatever the size in the plane


def shape(network: str, size: int) -> tuple[int, int, int]:
    """Shape of the volume: a cube, or for DS-Net as many slices as it takes."""
    return (DSNET_DEPTH if network == "dsnet" else size, size, size)


def model(mode: str, dtype: str = "float32", network: str = "dxnet"):
    """A network of the paper without stochastic depth, whose draws could not be compared."""
    return models.build(network, variant="paper", drop_path_rate=0.0, ops=mode, dtype=dtype)


@functools.cache
def weights(seed: int = 0, network: str = "dxnet") -> dict[str, np.ndarray]:
    """Flax path -> array, the same for both sides.

    Kernels are drawn for unit variance after a SiLU; scales and biases are moved from 1 and 0,
    which would hide a wrong assignment.
    """
    rng = np.random.default_rng(seed)
    image = jax.ShapeDtypeStruct((1, *shape(network, 32), inputs.MODALITIES), jnp.float32)
    net = model("lax", network=network)
    tree = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    flat = {}
    for path, like in flatten(tree).items():
        value = rng.normal(size=like.shape).astype(np.float32)
        if path.endswith("/kernel"):
            fan_in = math.prod(like.shape[:-1]) / (8 if "/up_" in path else 1)
            flat[path] = value * np.float32(math.sqrt(2 / fan_in))
        else:
            flat[path] = np.float32(0.1) * value + np.float32(path.endswith("/scale"))
    return flat


def precision(dtype: str) -> Any:
    """Float32 means float32: without TF32, which GPUs use by default."""
    if dtype == "float32" and jax.default_backend() == "gpu":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def compiled(function: Any, *args: Any, dtype: str = "float32") -> tuple[Any, dict[str, Any]]:
    """The executable and its notes: seconds to compile, operations, temporary memory."""
    start = time.perf_counter()
    with precision(dtype):
        lowered = jax.jit(function).lower(*args)
    executable = lowered.compile()
    seconds = time.perf_counter() - start
    return executable, {"compile_s": seconds, **program_notes(executable)}


def program_notes(executable: Any) -> dict[str, float]:
    """Operations and temporary memory of a program, as the compiler says."""
    notes = {"flops": float((executable.cost_analysis() or {}).get("flops", float("nan")))}
    memory = executable.memory_analysis()
    if memory is not None:
        notes["temporaries_mb"] = memory.temp_size_in_bytes / 1e6
    return notes


def flat_params(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    """A tree like the parameters as `prefix:path` -> numpy array."""
    return {f"{prefix}:{p}": np.asarray(v) for p, v in flatten(tree).items()}


def running(net: Any, shape: tuple[int, ...]) -> Any:
    """Running statistics of its batch norms as they start, mean 0 and variance 1; {} if none."""
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    stats = jax.eval_shape(net.init, jax.random.key(0), image).get("batch_stats", {})
    flat = flatten(stats)
    full = {p: jnp.full(v.shape, float(p.endswith("/var"))) for p, v in flat.items()}
    return unflatten(full)


def _forward(net, variables, image, dtype, name):
    variables = {"params": variables, "batch_stats": running(net, image.shape)}
    executable, notes = compiled(net.apply, variables, image, dtype=dtype)

    def step():
        return executable(variables, image)

    return Contestant(
        name, step, jax.block_until_ready, lambda: {"logits": np.asarray(step())}, notes
    )


def mean_loss(net, variables, image, target):
    """The mean Dice and cross-entropy loss, and the logits."""
    logits, _ = net.apply({"params": variables}, image, train=True, mutable=["batch_stats"])
    total, count = losses.dice_bce(logits, target)["loss"]
    return total / count, logits


def _loss_and_gradient(net, variables, image, target, dtype, name):
    function = jax.value_and_grad(functools.partial(mean_loss, net), has_aux=True)

    # The logits are for the comparison alone: what is timed must not have to keep them.
    def timed(variables, image, target):
        (loss, _), gradients = function(variables, image, target)
        return loss, gradients

    executable, notes = compiled(timed, variables, image, target, dtype=dtype)

    def step():
        return executable(variables, image, target)

    def arrays():
        loss, gradients = step()
        return {"loss": np.asarray(loss)} | flat_params(gradients, "gradient")

    return Contestant(name, step, jax.block_until_ready, arrays, notes)


def _first_moment(state: TrainState) -> Any:
    """Nadam's decaying mean of the gradients: after one step, `1 - MOMENTUM` of the gradient."""

    def is_nadam(node):
        return isinstance(node, optim.ScheduledNadamState)

    (found,) = filter(is_nadam, jax.tree.leaves(state.opt_state, is_leaf=is_nadam))
    return found.mu


def training(net, variables, image, target):
    """The jitted training step of a network, its first state and a batch, as training has them."""
    mesh = sharding.make_mesh(1, 1)
    optimizer = optim.make(**OPTIMIZER)
    start = optimizer.wrap(variables)
    stats = running(net, image.shape)
    state = TrainState(jnp.zeros((), jnp.int32), start, stats, optimizer.init(start))
    state = jax.device_put(state, sharding.replicated(mesh))
    batch = sharding.shard_batch({"image": np.asarray(image), "target": np.asarray(target)}, mesh)
    jitted = train.jit_step(train.make_train_step(net, optimizer, losses.dice_bce, seed=0), mesh)
    return jitted, state, batch


def _training_step(net, variables, image, target, dtype, name):
    jitted, state, batch = training(net, variables, image, target)
    started = time.perf_counter()
    with precision(dtype):
        program = jitted.compile(state, batch)
    notes = {"compile_s": time.perf_counter() - started}
    parts = [program_notes(part) for part in (program.gradient, program.update)]
    notes["flops"] = sum(part["flops"] for part in parts)
    notes["temporaries_mb"] = max(part["temporaries_mb"] for part in parts)
    held = {"state": state}

    def step():
        held["state"], metrics = program(held["state"], batch)
        return metrics

    def arrays():  # the first gradient, and three updates: the optimiser is the same too
        totals = [step()["loss"]]
        gradients = jax.tree.map(lambda m: m / (1 - MOMENTUM), _first_moment(held["state"]))
        totals += [step()["loss"] for _ in range(2)]
        found = {f"loss {i}": np.asarray(total / n) for i, (total, n) in enumerate(totals)}
        return found | flat_params(gradients, "gradient")

    return Contestant(name, step, jax.block_until_ready, arrays, notes)


def ingredients(size: int, mode: str, dtype: str, network: str) -> tuple[Any, Any, Any, Any]:
    """A network, its parameters, an image and its target."""
    variables = jax.tree.map(jnp.asarray, unflatten(weights(network=network)))
    image, target = (jnp.asarray(a) for a in inputs.sample(shape(network, size)))
    return model(mode, dtype, network), variables, image, target


def contestant(
    task: str, size: int, mode: str, dtype: str = "float32", network: str = "dxnet"
) -> Contestant:
    """One of `TASKS` with our network, compiled, on a volume of its `shape`."""
    net, variables, image, target = ingredients(size, mode, dtype, network)
    if task == "forward":
        return _forward(net, variables, image, dtype, mode)
    make = {"loss and gradient": _loss_and_gradient, "training step": _training_step}[task]
    return make(net, variables, image, target, dtype, mode)
