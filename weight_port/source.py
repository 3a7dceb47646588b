"""Sources of weights: a timm name, a checkpoint file, a package or a random initialisation.

Each gives the same: numpy arrays under timm's names, and a record of their origin.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.weights import channels
from crossdim_jax.weights.file import sha256
from crossdim_jax.weights.paths import ENCODER
from weight_port import families, local
from weight_port.formats import checkpoint
from weight_port.formats.scheme import TIMM
from weight_port.names import Name, parse_name
from weight_port.recognise import known, recognise
from weight_port.resemblance import resemblance


@dataclasses.dataclass(frozen=True)
class Source:
    """A network's tensors and where they come from.

    Attributes:
      name: what the name says, with the conventions of the weights.
      arrays: timm's name -> array, (out, in/groups, k, k) for kernels.
      origin: JSON-able: source, id, url, file, sha256, licence; and where they are not the usual
        ones scheme, prefix, ema, asked (conventions), in_channels, source_channels.
      others: names of tensors of the file that are not the network's.
      resembles: gives a sentence on what the file most resembles; None where there is no file.
    """

    name: Name
    arrays: Mapping[str, np.ndarray]
    origin: Mapping[str, Any]
    others: tuple[str, ...] = ()
    resembles: Callable[[], str] | None = None

    @property
    def in_channels(self) -> int:
        """Input channels of the stem."""
        return self.origin.get("in_channels") or channels.SOURCE_CHANNELS

    @property
    def own_channels(self) -> int:
        """Input channels that the stem was trained with, before any change of it."""
        return self.origin.get("source_channels") or channels.SOURCE_CHANNELS


# --------------------------------------------------------------------------- the sources


def from_file(
    path: str | Path,
    name: str,
    *,
    licence: str = "unknown",
    scheme: str | None = None,
    prefix: str | None = None,
    ema: bool = False,
    padding: str | None = None,
) -> Source:
    """A local checkpoint, of any of the formats and schemes that are known.

    Args:
      path: the file.
      name: the timm name of its architecture; the tag is only recorded.
      licence: of the weights, recorded.
      scheme: by which its tensors are named; None recognises it.
      prefix: what their names begin with; None finds it.
      ema: whether moving averages are taken, where the file has them too.
      padding: in place of that of the scheme, for networks that a library runs otherwise than they
        were trained.

    Raises:
      WeightsError: naming the file, what was found and what was expected.
    """
    path, parsed = Path(path), parse_name(name)
    held = checkpoint.read(path, ema=ema)
    found = recognise(held, parsed, file=str(path), scheme=scheme, prefix=prefix, ema=ema)
    resembles = functools.partial(resemblance, held)
    if found is None:
        raise WeightsError(
            f"{path}: holds no {parsed.model}: no tensor is called as the stem's kernel is in any "
            f"scheme ({', '.join(known(parsed.architecture))}).\n{resembles()}"
        )
    own = found.place.scheme
    conventions = dict(zip(("padding", "eps"), own.convention(parsed.model), strict=True))
    asked = {"padding": padding} if padding else {}
    count = _stem_channels(found.arrays, parsed.architecture)
    count = None if count == channels.SOURCE_CHANNELS else count
    origin = {"source": "file", "id": name, "url": None, "file": path.name}
    origin |= {"sha256": sha256(path), "licence": licence}
    origin |= {"scheme": own.name} if own.name != TIMM else {}
    unusual = {"prefix": found.place.prefix, "ema": ema, "asked": asked}
    unusual |= {"in_channels": count, "source_channels": count}
    origin |= {field: value for field, value in unusual.items() if value}
    parsed = dataclasses.replace(parsed, **conventions | asked)
    return Source(parsed, found.arrays, origin, found.others, resembles)


def _stem_channels(arrays: Mapping[str, np.ndarray], architecture: str) -> int:
    """Input channels of a checkpoint's first kernel; 3 if it is none, which `convert` will say."""
    path = f"params/{ENCODER}/{encoders.stem(architecture)}"
    shape = np.shape(arrays.get(families.of(architecture).torch_name(path)))
    return shape[1] if len(shape) == 4 else channels.SOURCE_CHANNELS


def from_package(name: str) -> Source | None:
    """The weights that an installed package brings; None if there are none of this name.

    Raises:
      WeightsError: the package's file is not the one that it is known for.
    """
    package = local.package(name)
    if package is None:
        return None
    file = package.file()
    found = from_file(file, package.name, licence=package.licence)
    if found.origin["sha256"] != package.sha256:
        raise WeightsError(
            f"{file}: found sha256 {found.origin['sha256'][:16]}..., expected "
            f"{package.sha256[:16]}...; install {package.distribution} again."
        )
    return dataclasses.replace(found, origin=dict(found.origin) | package.origin())


def from_timm(name: str, *, cached_only: bool = False) -> Source:
    """A pre-trained network by timm's name, from timm's download cache or the network.

    Args:
      name: the timm name.
      cached_only: whether the network is left alone.

    Raises:
      WeightsError: timm is not installed, has no such weights, or they cannot be downloaded.
    """
    parsed = parse_name(name)
    timm = optional("timm")
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
        parsed, checkpoint.read(path), {**origin, "sha256": sha256(path), "licence": licence}
    )


def random(name: str, *, seed: int = 0) -> Source:
    """timm's random initialisation of the named architecture: for tests and for trying things."""
    parsed = parse_name(name)
    timm, torch = optional("timm"), optional("torch")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(parsed.model, pretrained=False)
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    origin = {"source": "random", "id": parsed.model, "url": None, "file": None, "sha256": None}
    return Source(parsed, arrays, {**origin, "licence": "none: random numbers"})


def optional(module: str) -> Any:
    """The named optional module. Raises WeightsError that says how to install it."""
    try:
        return __import__(module)
    except ImportError as error:
        raise WeightsError(
            f"{module} is not installed, and this needs it: pip install 'crossdim_jax[port]'. "
            "Checkpoint files (--checkpoint=FILE) and the weights of 'crossdim_jax[imagenet]' can "
            "be ported without it."
        ) from error


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
