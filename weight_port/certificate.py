"""The certificate of a weight file: both networks are run, and what they differ by is written down.

Three things are claimed of a file, and each is measured:

  made     every tensor is what its record says it was made of and how;
  timm     the 2D network that it comes from is timm's, feature by feature and logit by logit;
  volume   on a volume that does not change along depth, the 3D network is the 2D network: exactly,
           where the inflation promises that, and otherwise by how much it departs.

A promise that does not hold is a sentence in `problems`. What could not be run says "not run" and
why.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax.errors import CrossdimError, WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.storage import files
from crossdim_jax.weights import norms
from crossdim_jax.weights.file import Weights, content_sha256, load_weights, save_weights
from crossdim_jax.weights.paths import is_head
from crossdim_jax.weights.recipe import Recipe
from crossdim_jax.weights.record import required
from weight_port import families, forward, records, rename, volume
from weight_port.convert import check_shapes, convert
from weight_port.forward import NOT_RUN, TOLERANCE
from weight_port.source import Source

VERSION = 1
SUFFIX = ".certificate.json"
SAME_TENSOR = 1e-6  # likewise for tensors made again: exp and sqrt may differ in the last digit
NEEDED = ("architecture", "padding", "eps", "ndim", "in_channels", "norm", "stem")  # of a record


def measure(
    weights: Weights, source: Source | None = None, *, absent: str = "no source was given"
) -> dict[str, Any]:
    """Makes a certificate; JSON-able. See the module.

    Args:
      weights: the file.
      source: what it was made of; None leaves out what needs it.
      absent: why there is no source.

    Raises:
      WeightsError: the file's record lacks what the networks are built by.
    """
    required(weights.metadata, NEEDED, weights.name)
    record, recipe = weights.metadata, recipe_of(weights)
    check_shapes(weights, record["architecture"], recipe)
    made, problems = _made(weights, recipe, source, absent)
    timm = _timm(weights, recipe, source, absent, problems)
    certificate = {
        "certificate": VERSION,
        **records.stamp(),
        "conditions": {
            "plane": forward.PLANE,
            "depth": forward.DEPTH if recipe.ndim == 3 else None,
            "batch": 1,
            "input": f"standard normal, seed {forward.SEED}",
            "tolerance": TOLERANCE,
        },
        "content_sha256": content_sha256(weights.arrays),
        "source_sha256": record.get("sha256"),
        "source_content_sha256": source_sha256(source) if source else None,
        "made": made,
        "timm": timm,
    }
    if recipe.ndim == 3:
        certificate["volume"] = volume.compare(weights, recipe, source, absent, problems)
    else:
        image = forward.image(recipe.in_channels)
        found = forward.features(
            record["architecture"], weights.arrays, image, **forward.attributes(record)
        )
        certificate["activations"] = [{"2d": forward.moments(feature)} for feature in found]
    return certificate | {"problems": problems}


def another_version(certificate: Mapping[str, Any]) -> str | None:
    """A sentence, if a certificate is not of the version that is written and read here."""
    version = certificate.get("certificate")
    if version == VERSION:
        return None
    return (
        f"the certificate in the file is of version {version}, and this program reads version "
        f"{VERSION}; `verify --write` makes it anew"
    )


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Context manager in which a certificate is read: what it lacks leaves as a WeightsError.

    name: of the file that holds it.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, CrossdimError):
            raise
        raise WeightsError(
            f"{name}: the certificate in its record is damaged ({type(error).__name__}: {error}); "
            "make it anew with python -m weight_port verify --write"
        ) from error


def recipe_of(weights: Weights) -> Recipe:
    """The recipe that a weight file's record speaks of."""
    record = weights.metadata
    fields = [field.name for field in dataclasses.fields(Recipe)]
    # What a 2D record has nothing to say of is None there.
    said = {name: record[name] for name in fields if record.get(name) is not None}
    said = {name: tuple(v) if isinstance(v, list) else v for name, v in said.items()}
    carried = str(record.get("statistics") or "carried") in ("carried", "dropped", "none")
    said["statistics"] = "carry" if carried else "reestimate"
    said["head"] = any(map(is_head, weights.arrays))
    return Recipe(**{"inflate": None} | said)


def source_sha256(source: Source) -> str:
    """Hash of a source's tensors, whatever kind of file they came in.

    The classification head and BatchNorm's counters are left out: not every kind has them.
    """
    of_head = families.of(source.name.architecture).of_head
    body = {
        name: np.asarray(array, np.float32)
        for name, array in source.arrays.items()
        if not of_head(name) and not rename.UNUSED.fullmatch(name)
    }
    return content_sha256(body)


def _not_run(reason: str) -> dict[str, str]:
    return {"status": NOT_RUN, "reason": reason}


# --------------------------------------------------------------------------- how it was made


def _made(
    weights: Weights, recipe: Recipe, source: Source | None, absent: str
) -> tuple[dict[str, Any], list[str]]:
    """The accounts of both sides, and whether making the file again gives the same tensors."""
    record, problems = weights.metadata, []
    accounts = {"unused": list(record.get("unused", ())), "fresh": list(record.get("fresh", ()))}
    if source is None:
        return _not_run(absent) | accounts, problems
    known = (record.get("certificate") or {}).get("source_content_sha256")
    if source.origin.get("sha256") != record.get("sha256") and known != source_sha256(source):
        problems.append(
            f"source: found sha256 {source.origin.get('sha256')}, the file was made of "
            f"{record.get('sha256')}"
        )
    try:
        again = convert(source, recipe)
    except CrossdimError as error:
        return {"status": "failed"} | accounts, [*problems, f"source: {error}"]
    measured = norms.recorded(recipe.norm, recipe.statistics) == "stale"
    differing = []
    for path in sorted(again.arrays.keys() | weights.arrays.keys()):
        if measured and path.startswith("batch_stats/"):
            continue  # measured on images since, or about to be
        ours, theirs = weights.arrays.get(path), again.arrays.get(path)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            differing.append(path)
        elif forward.relative_error(ours, theirs) > SAME_TENSOR:
            differing.append(path)
    if differing:
        problems.append(
            f"made again from the source, {len(differing)} tensors differ: "
            + ", ".join(differing[:5])
            + (", ..." if len(differing) > 5 else "")
        )
    return {
        "status": "run",
        "used": list(again.used),
        "unused": list(again.unused),
        "fresh": list(again.fresh),
        "target": len(again.arrays),
        "differing": differing,
    }, problems


# --------------------------------------------------------------------------- against timm


def _timm(
    weights: Weights,
    recipe: Recipe,
    source: Source | None,
    absent: str,
    problems: list[str],
) -> dict[str, Any]:
    """The 2D network against timm's: relative error of each feature, and of the logits."""
    if source is None:
        return _not_run(absent)
    channels = source.in_channels
    # A 2D file is looked at itself where timm has that network; else the one it was made from.
    usual = encoders.norm(source.name.architecture)
    itself = recipe.ndim == 2 and recipe.norm == usual and recipe.in_channels == channels
    itself = itself and not weights.metadata.get("fresh")
    try:
        image = forward.image(channels)
        expected, logits = forward.timm_outputs(source, image)
        plain = Recipe(2, channels, usual, None, "tile")
        arrays = weights.arrays if itself else convert(source, plain).arrays
    except CrossdimError as error:
        return _not_run(str(error).splitlines()[0])
    # The conventions are the file's: that they are those of the weights is what is looked at.
    conventions = {field: weights.metadata[field] for field in ("padding", "eps")}
    found, nudged = (
        forward.features(source.name.architecture, arrays, x, norm=usual, **conventions)
        for x in (image, forward.perturbed(image))
    )
    limits = forward.limits(found, nudged)
    errors = [forward.relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    result = {
        "status": "run",
        "model": _called(source),
        "of": "this file" if itself else "the 2D network it was made from",
        "features": [forward.short(error) for error in errors],
        "limits": limits,
    }
    problems += [
        f"timm: feature /{info.reduction} differs by {error:.2g}, expected at most {limit:g}"
        for info, error, limit in zip(
            encoders.feature_info(source.name.architecture), errors, limits, strict=True
        )
        if not error <= limit
    ]
    eps = conventions["eps"]
    return result | _logits(source, arrays, found[-1], logits, eps, limits[-1], problems)


def _called(source: Source) -> str:
    """timm's network that a source is compared with, and its eps if it is another library's."""
    model, eps = forward.reference(source), source.name.eps
    usual = families.of(source.name.architecture).convention(model)[1]
    changed = source.origin.get("scheme") and eps != usual
    return f"{model} with eps {eps:g}" if changed else model


def _logits(
    source: Source,
    arrays: Mapping[str, np.ndarray],
    feature: np.ndarray,
    expected: np.ndarray | None,
    eps: float,
    limit: float,
    problems: list[str],
) -> dict[str, Any]:
    """The relative error of the logits, where both sides have a classification head."""
    tensors = {path: array for path, array in arrays.items() if is_head(path)}
    if expected is None or not tensors:
        whose = "source" if expected is None else "file"
        return {"logits": _not_run(f"the {whose} has no classification head")}
    architecture = source.name.architecture
    logits = families.of(architecture).logits
    found = np.asarray(logits(architecture, tensors, feature, eps=eps))
    error = forward.relative_error(found, expected)
    if not error <= limit:
        problems.append(f"timm: logits differ by {error:.2g}, expected at most {limit:g}")
    return {"logits": forward.short(error)}


# --------------------------------------------------------------------------- where it is kept


def certificate_path(path: str | os.PathLike) -> Path:
    """Path of the copy of a file's certificate, beside it."""
    return Path(f"{path}{SUFFIX}")


def certify(
    path: str | os.PathLike, *, source: Source | None = None, absent: str = "no source was given"
) -> dict[str, Any]:
    """Makes a weight file's certificate and writes it into the file's record and beside the file.

    Args:
      path: a file that `save_weights` wrote.
      source: what it was made of; without it, what needs it is recorded as not run.
      absent: why there is no source.

    Returns:
      the certificate, see `measure`.

    Raises:
      WeightsError: the file does not do what its recipe promises; the certificate, which names
        the broken promises, is written all the same.
    """
    weights = load_weights(path)
    made = measure(weights, source, absent=absent)
    text = json.dumps(made, indent=1, sort_keys=True, allow_nan=False)
    save_weights(path, weights.arrays, {**weights.metadata, "certificate": made})
    with files.writing(certificate_path(path), "the certificate", kind=WeightsError):
        files.write_text(certificate_path(path), text + "\n")
    if made["problems"]:
        raise WeightsError(
            f"{path} was written, but it does not do what its recipe promises:\n  "
            + "\n  ".join(made["problems"])
            + "\nDo not train with it. Is the source what its name says, and are its conventions?"
        )
    return made


def beside(path: str | os.PathLike, stored: Mapping[str, Any]) -> list[str]:
    """Problem of the copy that lies beside the file; nothing if there is none."""
    copy = certificate_path(path)
    if not copy.exists():
        return []
    try:
        same = json.loads(copy.read_text(encoding="utf-8")) == stored
    except (OSError, ValueError):
        return [f"{copy}: cannot be read as JSON; make it again with verify --write"]
    return [] if same else [f"{copy}: is not the certificate that is in the file"]
