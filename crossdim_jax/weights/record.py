"""The record of a weight file: where its tensors come from, and whether they fit an experiment.

A JSON mapping: source, licence, sha256, architecture, conventions, inflation, stem, statistics,
versions, certificate. `weight_port` writes it, and so does a run whose weights others start from.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.storage.records import is_count, is_number
from crossdim_jax.weights import control

# Fields of a config's `weights` that say how its file was made; `check` compares them too.
CLAIMS = ("source", "inflate", "inflate_at", "stem")
COLOURS = 3  # input channels at which every stem policy but "reinit" keeps the stem as it is


def describe(metadata: Mapping[str, Any]) -> str:
    """A weight file's record in one line, for a log; absent fields are "unknown"."""

    def get(field: str) -> str:
        value = metadata.get(field)
        return "unknown" if value is None else f"{value:g}" if is_number(value) else str(value)

    inflation = f" by {get('inflate')}" if metadata.get("inflate") else ""
    said = control.text(metadata)
    return (
        f"{get('id')} (source {get('source')}, licence {get('licence')}) as {get('architecture')}, "
        f"{get('ndim')}D{inflation}, {get('in_channels')} input channels by {get('stem')}, "
        f"{get('norm')} norm, {get('padding')} padding, eps {get('eps')}{said and f'; {said}'}"
    )


def required(record: Mapping[str, Any], fields: Sequence[str], name: str) -> None:
    """Raises WeightsError unless the record has all of these fields.

    Args:
      record: the metadata of a weight file.
      fields: that what follows reads.
      name: of the file, for the message.
    """
    if missing := [field for field in fields if record.get(field) is None]:
        raise WeightsError(
            f"{name}: its record has no {', '.join(missing)}; it is of an older version. Port it "
            f"again: python -m weight_port {record.get('id') or 'NAME'}"
        )


def check_fit(
    metadata: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    name: str = "the weight file",
    ignore: Sequence[str] = (),
    reestimate: int = 0,
) -> None:
    """Compares a weight file's record with what a model needs and a config claims.

    To be called before `merge.merge`.

    Args:
      metadata: the record, `Weights.metadata`.
      expected: as `merge.requirements` gives it, any of: architecture, ndim, in_channels,
        padding ("same", "symmetric"), eps, norm ("batch", "instance", "group"),
        source (a timm name), inflate, stem. None and "" are not compared.
      name: the file, for the message.
      ignore: fields of `expected` that may differ; for reproducing code that uses weights
        with another padding or eps than they were trained with.
      reestimate: patches on which running statistics will be measured anew; 0 uses the file's.

    Raises:
      WeightsError: running statistics that do not describe the weights, see `check_statistics`;
        or listing every field that differs: file, found, expected, what to do.
    """
    check_statistics(metadata, name=name, reestimate=reestimate)
    unknown = [field for field in ignore if field not in expected]
    if unknown:
        raise WeightsError(
            f"Cannot ignore {', '.join(unknown)} in {name}: the compared fields are "
            f"{', '.join(expected)}."
        )
    problems = []
    for field, wanted in expected.items():
        if field in ignore or wanted is None or wanted == "":
            continue
        found = metadata.get("id" if field == "source" else field)
        agree = _AGREE[field](metadata, wanted) if field in _AGREE else found == wanted
        if not agree:
            what = "nothing" if found is None else repr(found)
            advice = _advice(field, metadata)
            problems.append(f"{field}: found {what}, expected {wanted!r}. {advice}")
    if problems:
        raise WeightsError(
            f"{name} is not what this experiment asks for:\n  "
            + "\n  ".join(p.rstrip() for p in problems)
            + "\nMake the file that it asks for with: python -m weight_port --config=CONFIG"
        )


def check_statistics(
    metadata: Mapping[str, Any], *, name: str = "the weight file", reestimate: int = 0
) -> None:
    """Refuses running statistics that do not describe the weights they come with.

    Those of a 2D network describe an inflated one only where the taps of its kernels add up to the
    2D kernel; under `repeat` responses grow with the depth of the kernel.

    Args:
      metadata: the record.
      name: the file, for the message.
      reestimate: patches on which they will be measured anew; above 0 anything will do.

    Raises:
      WeightsError: `repeat` with statistics carried over from 2D, or statistics marked as stale.
    """
    running = metadata.get("norm") in ("batch", "frozen")
    if not running or reestimate > 0:
        return
    statistics = str(metadata.get("statistics") or "carried")  # older files say nothing
    repeats = metadata.get("ndim") == 3 and "repeat" in inflations(metadata)
    repeats = repeats and statistics.startswith("carried")
    if repeats or statistics.startswith("stale"):
        why = "inflation 'repeat' with" if repeats else "stale"
        raise WeightsError(
            f"{name}: found {why} the 2D network's running BatchNorm statistics, expected "
            "statistics that describe these weights: normalised by these, responses would be off "
            "by the depth of every kernel. Measure them anew while training starts "
            "(config.weights.reestimate=16) or for the file (python -m weight_port reestimate), or "
            "port again with --inflate=mean or --norm=instance."
        )


def inflations(metadata: Mapping[str, Any]) -> set[str]:
    """Every inflation mode that a record names, for all kernels or for some."""
    some = (str(choice).rpartition("=")[2] for choice in metadata.get("inflate_at") or ())
    return {mode for mode in (metadata.get("inflate"), *some) if mode}


_ADVICE = {
    "architecture": "Choose the encoder that the weights were made for, or port its weights.",
    "ndim": "A 2D file serves every network; 3D weights, and those of a run, only one of their own "
    "rank: port with --ndim=2.",
    "in_channels": "Port again with --in-channels and a --stem policy. A run's stem cannot be "
    "adapted: train it on images of so many channels without full-resolution block "
    "(model.stem_width=0), or leave its stem out: weights.skip=('.*/{stem}',) "
    "weights.ignore=('in_channels',).",
    "padding": "The convention belongs to the weights: change the model's padding.",
    "eps": "The eps belongs to the weights: change the model's eps.",
    "norm": "Port again with --norm.",
    "source": "Change config.weights.source to what the file holds, or name another file.",
    "inflate": "Change config.weights.inflate to what the file holds, or name another file.",
    "inflate_at": "Change config.weights.inflate_at to what the file holds, or name another file.",
    "depth_taps": "Port again with --depth-kernels, or change the model's depth_kernels.",
    "factorised": "Port again with or without --factorised, or change the model's factorised.",
    "stem": "Change config.weights.stem to what the file holds, or name another file.",
}


def _advice(field: str, metadata: Mapping[str, Any]) -> str:
    """Remedy for a field that differs; `{stem}` stands for the path of the first kernel."""
    architecture = metadata.get("architecture")
    stem = encoders.stem(architecture) if architecture in [*encoders.ENCODERS] else "STEM"
    return _ADVICE.get(field, "").replace("{stem}", stem)


def _norms_agree(metadata: Mapping[str, Any], wanted: str) -> bool:
    """Instance and group norm hold the same tensors, scale and bias; so do batch and frozen."""
    found = metadata.get("norm")
    same = (("instance", "group"), ("batch", "frozen"))
    return found == wanted or any(found in norms and wanted in norms for norms in same)


def _eps_agree(metadata: Mapping[str, Any], wanted: float) -> bool:
    found = metadata.get("eps")
    return is_number(found) and math.isclose(found, wanted, rel_tol=1e-6)


def _sources_agree(metadata: Mapping[str, Any], wanted: str) -> bool:
    """The same timm name, `model.tag`; where one has no tag, the same model.

    timm's default tag has no name of its own, and random weights have none at all.
    """
    model, _, tag = str(metadata.get("id")).partition(".")
    wanted_model, _, wanted_tag = wanted.partition(".")
    return model == wanted_model and (tag == wanted_tag or not tag or not wanted_tag)


def _inflations_agree(metadata: Mapping[str, Any], wanted: str) -> bool:
    """2D weights are not inflated, whatever the config would have inflated them by."""
    return metadata.get("ndim") == 2 or metadata.get("inflate") == wanted


def _choices_agree(metadata: Mapping[str, Any], wanted: Sequence[str]) -> bool:
    """The same choices by pattern, in the same order; a file without the field made none."""
    found = metadata.get("inflate_at") or ()
    return metadata.get("ndim") == 2 or (
        isinstance(found, list | tuple) and list(found) == list(wanted)
    )


def _depth_taps_agree(metadata: Mapping[str, Any], wanted: Sequence[int]) -> bool:
    """The same taps by stage; of an older file, without the field, the shapes will tell."""
    found = metadata.get("depth_taps")
    return found is None or (isinstance(found, list | tuple) and list(found) == list(wanted))


def _forms_agree(metadata: Mapping[str, Any], wanted: bool) -> bool:
    found = metadata.get("factorised")
    return found is None or found == wanted


def _stems_agree(metadata: Mapping[str, Any], wanted: str) -> bool:
    found = metadata.get("stem")
    if metadata.get("in_channels") == COLOURS:
        return (found == "reinit") == (wanted == "reinit")
    return found == wanted


_AGREE: dict[str, Callable[[Mapping[str, Any], Any], bool]] = {
    "norm": _norms_agree,
    "eps": _eps_agree,
    "source": _sources_agree,
    "inflate": _inflations_agree,
    "inflate_at": _choices_agree,
    "depth_taps": _depth_taps_agree,
    "factorised": _forms_agree,
    "stem": _stems_agree,
}


# --------------------------------------------------------------------------- its types


def check_record(record: Mapping[str, Any], name: str) -> None:
    """Raises WeightsError if a field of a record is not of the type that it is read as."""
    wrong = [
        f"{field}: found {str(record[field])[:80]!r}, expected {says}"
        for field, (holds, says) in _RECORDED.items()
        if record.get(field) is not None and not holds(record[field])
    ]
    if wrong:
        raise WeightsError(
            f"{name}: its record is damaged:\n  "
            + "\n  ".join(wrong)
            + "\nMake the file again with python -m weight_port."
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(holds, value))


def _counts(value: Any) -> bool:
    return is_count(value) or _are(is_count)(value)


# Field of a record -> whether it can be read, and what it should be.
_RECORDED: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("source", "id", "url", "file", "sha256", "licence", "architecture", "padding", "inflate")
        + ("scheme", "prefix", "stem", "norm", "statistics", "date", "control"),
        (_is_text, "a text"),
    ),
    **dict.fromkeys(
        ("in_channels", "source_channels", "seed", "tensors", "values", "step"),
        (is_count, "a whole number"),
    ),
    **dict.fromkeys(("inflate_at", "unused", "fresh"), (_are(_is_text), "a list of texts")),
    **dict.fromkeys(("depth_kernels", "depth_taps"), (_counts, "whole numbers")),
    "eps": (lambda value: is_number(value) and value > 0, "a number above 0"),
    "ndim": (lambda value: value in (2, 3), "2 or 3"),
    **dict.fromkeys(
        ("factorised", "ema"), (lambda value: isinstance(value, bool), "true or false")
    ),
    "versions": (lambda value: isinstance(value, dict), "names and versions"),
    **dict.fromkeys(
        ("asked", "certificate"), (lambda value: isinstance(value, dict), "names and values")
    ),
}
