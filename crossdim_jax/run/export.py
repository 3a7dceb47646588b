"""Export of a run, or of all folds of a cross-validation, as a model folder that needs no JAX."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crossdim_jax.errors import ConfigError, CrossdimError, DataError
from crossdim_jax.evaluation import postprocessing
from crossdim_jax.inference.windows import Windows
from crossdim_jax.run import cases, ensemble, predict
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime import stop
from crossdim_jax.runtime.distributed import say
from crossdim_jax.storage import checksums, run_folder
from crossdim_jax.storage.files import ANOTHER_FOLDER, write_text, writing
from crossdim_jax.storage.reading import read_bytes
from crossdim_jax.storage.records import read_record
from crossdim_jax.training import checkpoint

PATCHES = 3  # on which ONNX Runtime is compared with JAX
LARGEST_ERROR = 1e-4  # relative, of a network that does not itself answer rounding with more
PROTOBUF_BYTES = 1_900_000_000  # larger weights lie beside the ONNX file: protobuf ends at 2 GB


def run(experiment: Experiment, target: str, *, licence: str = "") -> Path:
    """Writes the model folder; returns its path.

    Args:
      experiment: of the run, or of the folds, that were trained.
      target: folder that is not there yet, or empty.
      licence: of the model, for whoever gets it.

    Raises:
      ConfigError: images are predicted whole, or a package is missing.
      NotExpressible: something of the network has no form in ONNX.
      DataError: there are no weights, or the folder cannot be written.
    """
    if not target:
        raise ConfigError("--mode=export needs --output=FOLDER, for the model")
    if experiment.inference.mode != "window":
        raise ConfigError(
            f"config.inference.mode={experiment.inference.mode!r}: an exported network takes "
            "patches; give --config.inference.mode=window"
        )
    if jax.process_count() > 1:
        raise ConfigError("--mode=export runs in one process; start it without --coordinator")
    _require_packages()
    stop.enter(stop.repeatable("exporting"))
    folder = Path(target)
    _check_empty(folder)
    rules, members = predict.rules(experiment), ensemble.members(experiment)
    windows = _windows(experiment)
    patches, source = _patches(experiment, windows)
    networks, weights, compared = [], [], []
    for member in members:
        member.require_same_network()
        variables, record = member.trained()
        name = "network" if member is experiment else member.workdir.name
        say(f"{name}: {checkpoint.described(record)}")
        path = folder / "models" / f"{name}.onnx"
        _write_network(experiment, variables, path)
        compared.append(_compared(experiment, variables, path, patches))
        networks.append(path.name)
        weights.append({"file": path.name, **_provenance(member, record)})
    check = {name: max(one[name] for one in compared) for name in compared[0]}
    check |= {"patches": PATCHES, "of": source}
    _write_rest(experiment, folder, windows, networks, rules, weights, check, licence)
    with writing(folder, "checksums"):
        checksums.write(folder)  # last: without it the folder is not used
    error = check["max_relative_error"]
    say(f"largest relative error against JAX on {PATCHES} patches {source}: {error:.1e}")
    return folder


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'--mode=export needs {error.name}: pip install "crossdim_jax[export]"'
        ) from error


def _check_empty(folder: Path) -> None:
    """Raises DataError if there is something that would be mixed with the model."""
    with writing(folder, "the model", remedy=ANOTHER_FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
        existing = sorted(path.name for path in folder.iterdir())
        if existing == ["models"]:  # an export that was stopped, which is made again
            existing = [f"models/{p.name}" for p in (folder / "models").iterdir()]
            existing = [name for name in existing if not name.endswith((".onnx", ".data"))]
    if existing:
        raise DataError(
            f"{folder}: holds {', '.join(existing[:5])}; expected a folder that is empty or not "
            "there, so that nothing is overwritten: choose another --output"
        )


def _windows(experiment: Experiment) -> Windows:
    """The windows of `Experiment.predictor`, with the axes of the flips named."""
    patch, flips = experiment.data.patch, experiment.inference.flips
    if len(patch) == 2:
        patch, flips = (1, *patch), (1, 2) if flips is True else flips
    flips = tuple(range(3)) if flips is True else tuple(flips or ())
    inference = experiment.inference
    return Windows(patch, inference.overlap, flips, inference.window_batch)


def _patches(experiment: Experiment, windows: Windows) -> tuple[list[np.ndarray], str]:
    """Patches (1, *patch, c) to compare on, and of what they are: held-out cases, or noise."""
    challenge, patch = experiment.challenge, windows.patch
    with contextlib.suppress(CrossdimError):  # the cases may be elsewhere by now
        held = cases.held_out(ensemble.members(experiment)[0])[:PATCHES]
        images = [challenge.prepare(challenge.load(case)).image for case in held]
        if images:
            parts = [_part(images[i % len(images)], patch, i) for i in range(PATCHES)]
            return parts, f"of {len(held)} held-out cases"
    rng, shape = np.random.default_rng(0), (1, *patch, len(challenge.modalities))
    return [rng.standard_normal(shape, np.float32) for _ in range(PATCHES)], "of normal noise"


def _part(image: np.ndarray, patch: Sequence[int], number: int) -> np.ndarray:
    """A patch (1, *patch, c) out of an image: number 1 at its middle, 0 before and 2 behind it."""
    starts = [max(n - p, 0) * (number + 1) // 4 for n, p in zip(image.shape, patch, strict=False)]
    part = image[tuple(slice(s, s + p) for s, p in zip(starts, patch, strict=True))]
    missing = [(0, p - n) for n, p in zip(part.shape, patch, strict=False)]
    return np.pad(part, [*missing, (0, 0)])[None]


def _write_network(experiment: Experiment, variables: Any, path: Path) -> None:
    import onnx

    from crossdim_jax.export import network

    variables = jax.tree.map(np.asarray, variables)
    channels = len(experiment.challenge.modalities)
    model = network.as_onnx(experiment.model, variables, experiment.data.patch, channels)
    large = sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) > PROTOBUF_BYTES
    with writing(path, "the network", remedy=ANOTHER_FOLDER):
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save_model(model, path, save_as_external_data=large, location=f"{path.stem}.data")
    onnx.checker.check_model(str(path), full_check=True)


def _compared(
    experiment: Experiment, variables: Any, path: Path, patches: Sequence[np.ndarray]
) -> dict[str, float]:
    """Errors of ONNX Runtime's logits against JAX's, relative to the largest logit of a patch.

    Beside it, how far JAX's own move when the patch changes by a millionth: a network that answers
    rounding with large changes, such as one that is hardly trained, does so in any program.
    """
    from crossdim_jax.export import network, runner

    session, rng = runner.Network(path), np.random.default_rng(0)
    apply, flat = jax.jit(network.reference(experiment.model).apply), len(experiment.data.patch) < 3
    worst = {"max_relative_error": 0.0, "max_relative_sensitivity": 0.0}
    for patch in patches:
        nearby = patch * (1 + 1e-6 * rng.standard_normal(patch.shape, np.float32))
        with jax.default_matmul_precision("highest"):  # float32, also where TF32 is the default
            expected, moved = (
                np.asarray(apply(variables, image[:, 0] if flat else image))
                for image in (patch, nearby)
            )
        found = session(patch)[:, 0] if flat else session(patch)
        for name, other in zip(worst, (found, moved), strict=True):
            largest = np.abs(expected).max()
            # Not max(), which would lose a NaN.
            worst[name] = float(np.maximum(worst[name], np.abs(other - expected).max() / largest))
    if not np.isfinite(list(worst.values())).all():
        raise DataError(
            f"{path}: the network's output is not finite on a patch of the data, so there is "
            "nothing to compare; did the training diverge?"
        )
    error, allowed = worst.values()
    allowed = max(LARGEST_ERROR, 10 * allowed)
    if not error <= allowed:
        raise DataError(
            f"{path}: ONNX Runtime's output differs from JAX's by {error:.1e}, expected at most "
            f"{allowed:.0e}; this is a fault of the export: report it with the run's config"
        )
    return worst


def _provenance(member: Experiment, record: dict[str, Any]) -> dict[str, Any]:
    """Origin of a member's weights: its training, and what that had started from."""
    start = member.workdir / run_folder.WEIGHTS
    remedy = "restore it, or remove it: the model then does not say where its weights come from"
    return {
        "step": record["step"],
        "checkpoint": checkpoint.which(record),
        "score": record.get("score"),
        "started_from": read_record(start, remedy=remedy) if start.exists() else None,
    }


def _write_rest(
    experiment: Experiment,
    folder: Path,
    windows: Windows,
    networks: list[str],
    rules: Sequence[postprocessing.Rule],
    weights: list[dict[str, Any]],
    check: dict[str, Any],
    licence: str,
) -> None:
    """Metadata, card, licence and requirements."""
    import onnx
    import onnxruntime

    from crossdim_jax.export import card
    from crossdim_jax.export import folder as layout

    summary = _summary(experiment.workdir)
    challenge, dtype = experiment.challenge, jax.numpy.dtype(experiment.model.dtype).name
    own = layout.own_record(
        challenge,
        windows,
        networks,
        rules,
        preparation=card.preparation(challenge),
        trained_in=dtype,
        weights=weights,
        check={
            **check,
            "onnxruntime": onnxruntime.__version__,
            "onnx": onnx.__version__,
            "jax": jax.__version__,
        },
        scores=summary.get("statistics"),
    )
    record = card.bundle(challenge, experiment.data.patch, licence, own)
    table = experiment.workdir / run_folder.EVALUATION / "table.md"
    scores = read_bytes(table).decode() if table.exists() else ""
    notes, provenance = [], summary.get("provenance")
    scored = provenance.get("checkpoint_step") if isinstance(provenance, dict) else None
    if scored is not None and scored not in [one["step"] for one in weights]:
        notes.append(
            f"The scores are of the weights of step {scored}; those here are of step "
            f"{weights[0]['step']}: evaluate the run again before an export."
        )
    if dtype != "float32":
        notes.append(f"Trained in {dtype}, exported in float32: results may differ in few voxels.")
    for name, content in {
        layout.METADATA: layout.as_json(record),
        layout.CARD: card.model_card(record, scores.replace("# ", "### ", 1), notes),
        layout.LICENCE: f"{record['license']}\n",
        layout.REQUIREMENTS: card.requirements(),
    }.items():
        with writing(folder / name, remedy=ANOTHER_FOLDER):
            (folder / name).parent.mkdir(exist_ok=True)
            write_text(folder / name, content)


def _summary(workdir: Path) -> dict[str, Any]:
    """Record of the held-out cases' scores; empty where nothing was evaluated."""
    path = workdir / run_folder.EVALUATION / "summary.json"
    if not path.exists():
        return {}
    return read_record(path, remedy="evaluate the run again", constants=True)
