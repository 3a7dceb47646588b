"""A 2D weight file for whatever network asks for it: adapted and inflated in memory.

What comes out is bit for bit what `weight_port` writes for the same source and recipe.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crossdim_jax.errors import WeightsError, first_of
from crossdim_jax.models.encoders import EncoderSpec
from crossdim_jax.weights import channels, control, norms
from crossdim_jax.weights.file import Weights, sha256
from crossdim_jax.weights.fit import Fitted, account, fit
from crossdim_jax.weights.recipe import Recipe, for_network
from crossdim_jax.weights.record import check_fit, required

NEEDED = ("architecture", "padding", "eps", "in_channels", "stem", "norm")  # of a 2D file's record
OF_SOURCE = ("architecture", "padding", "eps", "source")  # what no recipe changes


def made_for(
    weights: Weights,
    spec: EncoderSpec,
    needs: Mapping[str, Any],
    claims: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    reestimate: int = 0,
    controlled: str = "",
    seed: int = 0,
) -> Weights:
    """Weights for a network, of a 2D file that is not made for it; others are returned as they are.

    Args:
      weights: from `load_weights`.
      spec: the network's encoder.
      needs: what it needs, from `merge.requirements`.
      claims: what a config says of inflation and stem, from `merge.claims`.
      ignore, reestimate: see `record.check_fit`.
      controlled: a key of `control.CONTROLS`, or "" for the weights themselves.
      seed: of the control. A stem that is drawn anew has the file's own seed, as in porting.

    Raises:
      WeightsError: the file is of another network, is none that can be adapted, or what the config
        asks for does not go together.
    """
    record, name = weights.metadata, weights.name
    of_run = record.get("source") == "run"
    if controlled and (of_run or record.get("ndim") != 2):
        found = "the encoder of a run" if of_run else f"{record.get('ndim')}D weights"
        raise WeightsError(
            f"{name}: config.weights.control={controlled!r} is made of a 2D network's own kernels, "
            f"found {found}. Give the 2D file, which is inflated when training starts; make it "
            f"with: python -m weight_port {record.get('id') or 'NAME'} --ndim=2"
        )
    if of_run or record.get("ndim") != 2 or (not controlled and _fits(record, needs)):
        return weights
    required(record, NEEDED, name)
    _check_source(record, needs | claims, name, ignore, reestimate)
    if _adapted(record) and record["in_channels"] == needs["in_channels"]:
        claims = claims | {"stem": record["stem"]}  # stays; `check_fit` compares it with the claim
    try:
        file_seed = record.get("seed") or 0
        recipe = for_network(spec, needs, claims, reestimate=reestimate > 0, seed=file_seed)
        norms.check_source(recipe.norm, record["architecture"], recipe.statistics)
        check_stem(weights, recipe)
        fitted = _fitted(weights, recipe, controlled, seed)
    except WeightsError as error:
        raise WeightsError(f"As config.weights and config.model ask for it: {error}") from error
    made = _record(weights, recipe, fitted, controlled, seed)
    return Weights(fitted.arrays, made, weights.path, weights.checked)


def check_stem(weights: Weights, recipe: Recipe) -> None:
    """Raises WeightsError if another stem is asked for and the file no longer has the source's."""
    record = weights.metadata
    found = (record["in_channels"], record["stem"])
    wanted = (recipe.in_channels, recipe.stem)
    drawn = channels.draws(recipe.stem, recipe.in_channels)
    if _adapted(record) and found != wanted and not drawn:
        raise WeightsError(
            f"{weights.name}: its stem has {found[0]} input channels by {found[1]!r}, asked for "
            f"{wanted[0]} by {wanted[1]!r}. Start from a file with {_own_channels(record)} "
            "input channels, whose stem is the source's own, or keep the stem as it is."
        )


def _adapted(record: Mapping[str, Any]) -> bool:
    """True if the stem is no longer the source's own."""
    return record["in_channels"] != _own_channels(record) or record["stem"] == "reinit"


def _own_channels(record: Mapping[str, Any]) -> int:
    return record.get("source_channels") or channels.SOURCE_CHANNELS


def _fits(record: Mapping[str, Any], needs: Mapping[str, Any]) -> bool:
    """True if the file is loaded as it is, or `check_fit` says why it cannot be."""
    same = all(record.get(field) == needs[field] for field in ("ndim", "in_channels"))
    return same and (record.get("norm") in norms.KEEPING) == (needs["norm"] in norms.KEEPING)


def _check_source(
    record: Mapping[str, Any],
    expected: Mapping[str, Any],
    name: str,
    ignore: Sequence[str],
    reestimate: int,
) -> None:
    """Raises WeightsError if the file is of another network, or lacks statistics that it needs."""
    keeps = expected["norm"] in norms.KEEPING
    lacks = keeps and not reestimate and record["norm"] not in norms.KEEPING
    fields = (*OF_SOURCE, "norm") if lacks else OF_SOURCE
    check_fit(
        record,
        {field: expected[field] for field in fields},
        name=name,
        ignore=[field for field in ignore if field in OF_SOURCE],
        reestimate=reestimate or int(not keeps),  # dropped ones need not describe the weights
    )


def _fitted(weights: Weights, recipe: Recipe, controlled: str, seed: int) -> Fitted:
    """The network's tensors. Raises WeightsError if the file cannot become them."""
    record, given = weights.metadata, weights.arrays
    if controlled:
        if record["in_channels"] != _own_channels(record):
            raise WeightsError(
                f"{weights.name}: config.weights.control={controlled!r} changes the stem that was "
                f"trained; found one adapted to {record['in_channels']} input channels, expected "
                f"{_own_channels(record)}. Give a 2D file whose stem is the source's own."
            )
        given = control.apply(controlled, given, record["architecture"], seed)
    fitted = fit(
        given,
        record["architecture"],
        recipe,
        stem_channels=record["in_channels"],
        own_channels=_own_channels(record),
        name=weights.name,
    )
    problems = [
        *(f"{path}: {problem}" for path, problem in fitted.problems.items()),
        *(f"unknown to the network: {path}" for path in fitted.unknown),
        *(f"missing in the file: {path}" for path in fitted.missing),
    ]
    if problems:
        raise WeightsError(
            f"{weights.name}: does not hold the 2D {record['architecture']} that its record speaks "
            f"of:\n  {first_of(problems)}\nMake the file again with python -m weight_port."
        )
    return fitted


def _record(
    weights: Weights, recipe: Recipe, fitted: Fitted, controlled: str, seed: int
) -> dict[str, Any]:
    """Record of the weights: that of the file, what was made of it, and which file it was."""
    record, path = weights.metadata, weights.path
    made = {
        **record,
        **account(fitted, record["architecture"], recipe),
        "unused": [*(record.get("unused") or ()), *fitted.dropped],
    }
    if path is not None:
        made["by_way_of"] = {"file": path.name, "sha256": sha256(path)}
    if controlled:
        made |= {"control": controlled, "control_seed": seed}
        made.pop("certificate", None)  # it is of the weights themselves
    return made
