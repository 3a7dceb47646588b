"""Sources of weights: a timm name, a checkpoint file or a random initialisation.

Each gives the same: torch-named numpy arrays, and a record of their origin. Pickled checkpoints are
opened with `weights_only=True` and in no other way, so no code in them is ever run.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax.errors import DataError, WeightsError
from crossdim_jax.weights.tensors import read_safetensors
from weight_port.formats import torch_file
from weight_port.names import Name, parse_name

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and by torch.compile


@dataclasses.dataclass(frozen=True)
class Source:
    """A network's tensors and where they come from.

    Attributes:
      name: what the name says.
      arrays: torch name -> array, (out, in/groups, k, k) for kernels.
      origin: JSON-able: source, id, url, file, sha256, licence.
    """

    name: Name
    arrays: Mapping[str, np.ndarray]
    origin: Mapping[str, Any]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------------------- three sources


def from_file(path: str | Path, name: str, *, licence: str = "unknown") -> Source:
    """A local checkpoint: .safetensors, or .pth/.pt/.bin holding nothing but tensors.

    Args:
      path: the file.
      name: the timm name of its architecture; the tag is only recorded.
      licence: of the weights, recorded.

    Raises:
      WeightsError: naming the file, what was found and what was expected.
    """
    path, parsed = Path(path), parse_name(name)
    arrays = read_checkpoint(path)
    origin = {"source": "file", "id": name, "url": None, "file": path.name}
    return Source(parsed, arrays, {**origin, "sha256": sha256(path), "licence": licence})


def from_timm(name: str, *, cached_only: bool = False) -> Source:
    """A pre-trained network by timm's name, from timm's download cache or the network.

    Args:
      name: the timm name.
      cached_only: whether the network is left alone.

    Raises:
      WeightsError: timm is not installed, has no such weights, or they cannot be downloaded.
    """
    parsed = parse_name(name)
    timm = torch_file.optional("timm")
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # timm's word for an unknown tag
        config = None
    if config is None or not (config.hf_hub_id or config.url):
        tags = timm.list_pretrained(parsed.model)
        known = f"timm has: {', '.join(tags)}" if tags else "timm has none for this architecture"
        raise WeightsError(
            f"{name}: timm has no pre-trained weights of this name; {known}. A checkpoint of "
            "your own goes in with --checkpoint=FILE."
        )
    path, url = _download(name, config, cached_only)
    full_name = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    origin = {"source": "timm", "id": full_name, "url": url, "file": path.name}
    licence = config.license or "unknown"
    return Source(
        parsed, read_checkpoint(path), {**origin, "sha256": sha256(path), "licence": licence}
    )


def random(name: str, *, seed: int = 0) -> Source:
    """timm's random initialisation of the named architecture: for tests and for trying things."""
    parsed = parse_name(name)
    timm, torch = torch_file.optional("timm"), torch_file.optional("torch")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(parsed.model, pretrained=False)
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    origin = {"source": "random", "id": parsed.model, "url": None, "file": None, "sha256": None}
    return Source(parsed, arrays, {**origin, "licence": "none: random numbers"})


def _download(name: str, config: Any, cached_only: bool) -> tuple[Path, str]:
    """The weights' local file, fetched if it is not in timm's cache, and their address."""
    from huggingface_hub import hf_hub_download  # comes with timm, which downloads with it
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from timm.models import _hub

    url, local = config.url, {"local_files_only": True} if cached_only else {}
    try:
        if not config.hf_hub_id:
            if cached_only:
                raise FileNotFoundError("not looked for in the cache, which has no index for it")
            return Path(_hub.download_cached_file(url, check_hash=True)), url
        repository, revision = _hub.hf_split(config.hf_hub_id)
        names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors"]
        for file in [*names, _hub.HF_WEIGHTS_NAME]:
            url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{file}"
            try:
                return Path(hf_hub_download(repository, file, revision=revision, **local)), url
            except LocalEntryNotFoundError:  # not reachable, which is not "there is no such file"
                raise
            except EntryNotFoundError:
                continue
        raise FileNotFoundError(f"none of its weight files is at {repository}")
    except Exception as error:  # whatever an HTTP client may raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise WeightsError(
            f"{name}: cannot download the weights ({reason}). Without a network, fetch {url} "
            "elsewhere and give the file: --checkpoint=FILE"
        ) from error


# --------------------------------------------------------------------------- files


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint file by their torch names, without wrappers' prefixes."""
    if not path.exists():
        raise WeightsError(f"{path}: no such checkpoint file.")
    if path.suffix == ".safetensors":
        try:
            arrays, _ = read_safetensors(path)
        except DataError as error:
            raise WeightsError(str(error)) from error
    elif path.suffix in TORCH_SUFFIXES:
        arrays = torch_file.read(path)
    else:
        raise WeightsError(
            f"{path}: found suffix {path.suffix!r}, expected .safetensors or one of "
            f"{', '.join(TORCH_SUFFIXES)} (a PyTorch state dict)."
        )
    for prefix in PREFIXES:
        if arrays and all(key.startswith(prefix) for key in arrays):
            arrays = {key.removeprefix(prefix): value for key, value in arrays.items()}
    return arrays
