"""The start of a training: ported weights or those of a run, and statistics measured for it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from crossdim_jax.data import cache
from crossdim_jax.errors import ConfigError, WeightsError
from crossdim_jax.run import cases, weights_of_run
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime.distributed import say
from crossdim_jax.training import batch_stats, initialise, optim
from crossdim_jax.training.state import TrainState
from crossdim_jax.weights import file
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.from_2d import made_for
from crossdim_jax.weights.merge import requirements
from crossdim_jax.weights.record import check_fit, describe


def load_weights(experiment: Experiment) -> Weights | None:
    """The encoder's ported weights, or those of the run whose folder is named; None if none is.

    Raises:
      WeightsError: the file does not fit the model, or is not what the config says it is.
      ConfigError: statistics are to be re-estimated where there are none.
    """
    options, patches = experiment.weights, experiment.weights.reestimate
    if not options.file:
        if patches:
            raise ConfigError(
                f"config.weights.reestimate={patches}, but config.weights.file is "
                "empty: random parameters have no statistics worth measuring; set it to 0"
            )
        return None
    loaded = None
    try:
        loaded = _loaded(options.file)
        weights = _checked(experiment, loaded)
    except WeightsError as error:
        flat = loaded is not None and loaded.metadata.get("ndim") == 2
        raise WeightsError(f"{error}{'' if flat else _depth_advice(experiment)}") from error
    say(describe(weights.metadata))
    return weights


def _loaded(path: str) -> Weights:
    """The content of a weight file, or the encoder of the run whose folder that is."""
    return weights_of_run.load(path) if Path(path).is_dir() else file.load_weights(path)


def _checked(experiment: Experiment, weights: Weights) -> Weights:
    """Those weights for the network, if they fit it; see `load_weights`."""
    options, patches = experiment.weights, experiment.weights.reestimate
    of_run = Path(options.file).is_dir()
    image = jax.ShapeDtypeStruct(experiment.image_shape, jnp.float32)
    variables = jax.eval_shape(experiment.model.init, jax.random.key(0), image)
    if patches and not variables.get("batch_stats"):
        raise ConfigError(
            f"config.weights.reestimate={patches}, but with norm {experiment.model.encoder.norm!r} "
            "the network keeps no running statistics; set it to 0"
        )
    needs = requirements(experiment.model, variables)
    weights = made_for(
        weights,
        experiment.model.encoder,
        needs,
        options.claims,
        ignore=options.ignore,
        reestimate=patches,
        controlled=options.control,
        seed=experiment.seed,
    )
    check_fit(
        weights.metadata,
        # The config's own words are about files: they say nothing of what a run has trained.
        needs | ({} if of_run else options.claims),
        name=weights.name,
        ignore=options.ignore,
        reestimate=patches,
    )
    return weights


def _depth_advice(experiment: Experiment) -> str:
    """How weights for the experiment's depth kernels are had; "" if the plane's do."""
    kernels = experiment.model.encoder.depth_kernels
    path = Path(experiment.weights.file)
    if kernels is None or path.suffix != ".safetensors":
        return ""
    taps = (kernels,) if isinstance(kernels, int) else kernels
    own = path.with_stem(f"{path.stem}_d{'.'.join(map(str, taps))}")
    same = f"--config.weights.file={own}"
    return (
        "\nThe kernels of this encoder have taps of their own along depth. A 2D weight file is "
        "inflated for them when training starts; a 3D one is made by\n"
        f'  python -m weight_port --config=CONFIG --config.model.depth_kernels="{tuple(taps)}" '
        f"{same}\nand train with {same}; --config.weights.file= starts from random weights"
    )


def first_state(
    experiment: Experiment,
    optimizer: optim.Optimizer,
    training: list[cache.CachedCase],
    weights: Weights | None,
) -> tuple[TrainState, dict[str, Any] | None]:
    """The state before the first step, and a record of what the encoder started from."""
    state = initialise.init_state(
        experiment.model,
        optimizer,
        experiment.image_shape,
        experiment.mesh,
        seed=experiment.seed,
        weights=weights,
        skip=experiment.weights.skip,
    )
    record = dict(weights.metadata) if weights is not None else None
    if record is not None and experiment.weights.reestimate:
        state, patches = reestimate(experiment, state, training)
        record["statistics"] = f"reestimated ({patches} training patches)"
    return state, record


def reestimate(
    experiment: Experiment, state: TrainState, training: Sequence[cache.CachedCase]
) -> tuple[TrainState, int]:
    """Measures the running statistics of every batch norm on training patches.

    Of the whole network, the decoder's too: those would otherwise start from mean 0 and variance 1,
    which describe nothing. The patches are those that training will see first, in the same
    micro-batches; without stochastic depth, because evaluation has none.

    Returns:
      the state with the new statistics, and the number of patches they were measured on.

    Raises:
      ConfigError: what was measured is not finite.
    """
    model = experiment.model
    # Frozen norms measure nothing themselves; the tensors are those of batch norms.
    spec = dataclasses.replace(model.encoder, drop_path_rate=0.0, norm=model.encoder.fresh_norm)
    # Without threads: only a few are asked for.
    size = experiment.training.micro_batch_size
    data = cases.train_data(experiment, training, size, num_threads=0)
    stats, patches = batch_stats.reestimate(
        model.clone(encoder=spec),
        {"params": optim.fast(state.params), "batch_stats": state.batch_stats},
        (batch["image"] for batch in data),
        experiment.mesh,
        patches=experiment.weights.reestimate,
        seed=experiment.seed,
    )
    say(f"running statistics measured on {patches} training patches")
    return state._replace(batch_stats=stats), patches
