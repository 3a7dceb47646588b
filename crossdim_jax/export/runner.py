"""Prediction by an exported model: `crossdim-predict MODEL INPUT OUTPUT`, without JAX.

Files become arrays, and probabilities labels, by the very code of `--mode=predict`, so the labels
are the same but for voxels where two probabilities are equal to rounding. Needed are onnxruntime,
numpy, scipy, nibabel, pydicom, pillow, contourpy and tqdm.
"""

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from crossdim_jax import text
from crossdim_jax.errors import CrossdimError, DataError
from crossdim_jax.evaluation import postprocessing, predict
from crossdim_jax.export import folder
from crossdim_jax.runtime import stop
from crossdim_jax.storage import files


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Each channel's probability by itself; exact far from 0, without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, small) / (1 + small)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the channels, which come last."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


ACTIVATIONS = {"sigmoid": sigmoid, "softmax": softmax}


class Network:
    """A network in ONNX Runtime, `windows (b, *patch, c) -> logits (b, *patch, k)`.

    Args:
      path: of the ONNX file.
      threads: of ONNX Runtime; 0: as many as it likes.

    Raises DataError if the file cannot be used.
    """

    def __init__(self, path: Path, *, threads: int = 0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        exact = {"CUDAExecutionProvider": {"use_tf32": 0}, "CPUExecutionProvider": {}}
        there = onnxruntime.get_available_providers()
        providers = [(name, exact[name]) for name in exact if name in there]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime has no class for all of its own
            raise DataError(f"{path}: ONNX Runtime cannot use it: {error}") from error
        batch, self.channels, *self.spatial = self._session.get_inputs()[0].shape
        self._one_by_one = batch == 1

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """Logits, float32."""
        if self._one_by_one and len(windows) > 1:
            return np.concatenate([self(windows[i : i + 1]) for i in range(len(windows))])
        flat = windows[:, 0] if len(self.spatial) == 2 else windows
        (logits,) = self._session.run(
            None, {"image": np.ascontiguousarray(np.moveaxis(flat, -1, 1))}
        )
        logits = np.moveaxis(logits, 1, -1)
        return logits[:, None] if len(self.spatial) == 2 else logits


def predictor(model: folder.Model, *, threads: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """`image (z, y, x, c) -> probabilities (z, y, x, k)`, the mean over the model's networks.

    Raises DataError if a network does not fit what the folder says of it.
    """
    activation = ACTIVATIONS[model.challenge.activation]
    networks = [Network(path, threads=threads) for path in model.networks]
    channels, patch = len(model.challenge.modalities), list(model.windows.patch)
    for path, network in zip(model.networks, networks, strict=True):
        spatial = [1] * (3 - len(network.spatial)) + network.spatial
        if network.channels != channels or spatial != patch:
            raise DataError(
                f"{path}: takes {network.channels} channels of {spatial} voxels, but the folder "
                f"says {channels} of {patch}; {folder.REMEDY}"
            )

    def run(image: np.ndarray) -> np.ndarray:
        total = sum(
            model.windows(lambda windows, network=network: activation(network(windows)), image)
            for network in networks
        )
        return total / len(networks)

    return run


def run(
    model_folder: Path, source: Path, target: Path, *, overwrite: bool = False, threads: int = 0
) -> predict.Result:
    """Segments a folder of cases.

    Args:
      model_folder: written by `--mode=export`.
      source: cases in the challenge's layout, with or without labels.
      target: folder for the predictions.
      overwrite: True predicts again what is already there.
      threads: of ONNX Runtime; 0: as many as it likes.

    Raises:
      ManyErrors: some cases failed; the others are written.
    """
    model = folder.read(model_folder)
    predict_fn, failed = predictor(model, threads=threads), []
    cases = model.challenge.cases(source, labelled=False, errors=failed)
    text.say(f"predicting {len(cases)} cases with {len(model.networks)} networks in ONNX Runtime")
    result = predict.predict_folder(
        model.challenge,
        cases,
        predict_fn,
        target,
        overwrite=overwrite,
        export=True,
        postprocess=functools.partial(postprocessing.apply, rules=model.rules),
        errors=failed,
    )
    text.say(
        f"{len(result.written)} written, {len(result.skipped)} already there, "
        f"{len(result.failed)} failed: {target}"
    )
    result.raise_if_failed()
    return result


def command(arguments: Sequence[str] | None = None) -> int:
    """The command line; an error of the user's ends it in one message. Returns the status."""
    parser = argparse.ArgumentParser(prog="crossdim-predict", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder written by --mode=export")
    parser.add_argument("input", type=Path, help="a folder of cases, with or without labels")
    parser.add_argument("output", type=Path, help="where predictions go")
    parser.add_argument("--overwrite", action="store_true", help="also cases already there")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: its own choice")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    text.make_visible(logging.getLogger().handlers[0])
    with files.output():
        try:
            stop.enter(stop.repeatable("predicting"))
            run(
                args.model,
                args.input,
                args.output,
                overwrite=args.overwrite,
                threads=args.threads,
            )
        except CrossdimError as error:
            text.say(f"error: {error}", sys.stderr)
            return 1
    return 0
