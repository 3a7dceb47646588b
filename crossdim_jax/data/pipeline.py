"""Endless batches of random patches or slices, by random access: any batch can be made on its own.

The pipeline is a function of seed and batch number, so its whole state is one number, and a
resumed run sees the batches the interrupted one would have seen.
"""

from collections.abc import Sequence

import grain
import numpy as np

from crossdim_jax.challenges.base import Challenge
from crossdim_jax.data.cache import CachedCase
from crossdim_jax.errors import ConfigError, DataError


def train_dataset(
    cached: Sequence[CachedCase],
    challenge: Challenge,
    *,
    patch: Sequence[int],
    batch_size: int,
    seed: int,
    foreground: float = 0.0,
    num_threads: int = 2,
    prefetch: int = 4,
    positions: Sequence[int] | None = None,
) -> grain.IterDataset:
    """Endless random patches; each epoch shows every case once, in a new order.

    In two dimensions, slices: each epoch shows every slice of every case once.

    Args:
      cached: labelled cases.
      challenge: makes the targets.
      patch: (z, y, x) voxels. A volume that is smaller is padded with zeros, evenly. Or (y, x): the
        size that all slices have, see `Challenge.prepare`.
      batch_size: samples of a batch, of all processes together.
      seed: of order and positions, 0 <= seed < 2**32.
      foreground: probability that a patch is made to hold a voxel of a region: each region that
        the case has is equally likely, then each voxel of it, then each position inside the volume
        that holds the voxel. Otherwise all positions are equally likely. 0 for slices.
      num_threads: threads that read; 0 reads when asked, in the calling thread.
      prefetch: batches kept ready.
      positions: samples of each global batch that this process reads, see
        `sharding.batch_positions`; None for all. The global batch is the same whatever the number
        of processes.

    Returns:
      A dataset whose iterators yield dict(image (b, *patch, c) float32, target (b, *patch, k)
      uint8, weights (b, k) float32, id (b,) str) and have `get_state` and `set_state`. The weights
      are those of `Challenge.encode`.

    Raises:
      ConfigError: a number is out of range.
      DataError: no case, or one without label; while iterating, a case that cannot be read.
    """
    patch = tuple(int(length) for length in patch)
    if len(patch) not in (2, 3) or min(patch) < 1:
        raise ConfigError(f"patch is {patch}; expected positive lengths (z, y, x) or (y, x)")
    if not 0 <= foreground <= 1:
        raise ConfigError(f"foreground is {foreground}; expected a probability from 0 to 1")
    if foreground and len(patch) == 2:
        raise ConfigError(f"foreground is {foreground}; slices are whole, so it must be 0")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected 1 or more")
    if num_threads < 0:
        raise ConfigError(f"num_threads is {num_threads}; expected 0 (no extra thread) or more")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}; expected 0 or more and less than 2**32")
    if not cached:
        raise DataError("there is no case to train on")
    if unlabelled := [case.id for case in cached if not (case.folder / "label.npy").exists()]:
        raise DataError(f"cases without a label cannot train: {', '.join(unlabelled[:10])}")

    def example(element: tuple[CachedCase, int | None], rng: np.random.Generator):
        case, index = element
        try:
            if index is None:
                return _example(case, challenge, patch, foreground, rng)
            return _slice(case, challenge, patch, index)
        except Exception as error:
            raise DataError(f"case {case.id}: no patch could be made ({error})") from error

    # The random numbers depend on the position in the global sequence: `random_map` comes before
    # the process's part is taken.
    dataset = grain.MapDataset.source(elements(cached, patch)).seed(seed).shuffle().repeat()
    positions = range(batch_size) if positions is None else positions
    dataset = _part(dataset.random_map(example), batch_size, positions)
    dataset = dataset.batch(len(positions), drop_remainder=True)
    return dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    )


def _part(dataset: grain.MapDataset, batch_size: int, positions: Sequence[int]) -> grain.MapDataset:
    """The elements at some positions of each `batch_size`; the others are never made."""
    if len(positions) == batch_size:
        return dataset

    def at(index: int):
        batch, place = divmod(index, len(positions))
        return dataset[batch * batch_size + positions[place]]

    return grain.MapDataset.range(len(dataset) // batch_size * len(positions)).map(at)


def elements(
    cached: Sequence[CachedCase], patch: Sequence[int]
) -> list[tuple[CachedCase, int | None]]:
    """Elements of an epoch: every case, or for a patch (y, x) every slice of every case."""
    if len(patch) == 3:
        return [(case, None) for case in cached]
    return [(case, index) for case in cached for index in range(case.shape[0])]


def crop_start(
    shape: Sequence[int],
    patch: Sequence[int],
    rng: np.random.Generator,
    voxel: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Start of a patch along each axis; negative where the volume is smaller than the patch.

    Args:
      shape, patch: (z, y, x).
      rng: draws one of all positions inside the volume, each equally likely.
      voxel: (z, y, x): one of those positions that hold it.
    """
    start = []
    for axis, (length, width) in enumerate(zip(shape, patch, strict=True)):
        room = length - width
        if room <= 0:
            start.append(-(-room // 2))
        elif voxel is None:
            start.append(int(rng.integers(room + 1)))
        else:
            at = int(voxel[axis])
            start.append(int(rng.integers(max(at - width + 1, 0), min(at, room) + 1)))
    return tuple(start)


def draw_voxel(foreground: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Draws a foreground voxel (z, y, x): each region present is equally likely, however small.

    Args:
      foreground: see `CachedCase.foreground`; None is returned if it is empty.
      rng: draws the region, then the voxel.
    """
    if not len(foreground):
        return None
    number = foreground[:, 0]
    bounds = np.searchsorted(number, np.arange(int(number[-1]) + 2))
    present = np.flatnonzero(np.diff(bounds))
    region = present[rng.integers(len(present))]
    return foreground[rng.integers(bounds[region], bounds[region + 1]), 1:]


def crop(array: np.ndarray, start: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    """Copy of `array[start : start + patch]` over the leading axes, zeros where it is outside."""
    result = np.zeros((*patch, *array.shape[len(patch) :]), array.dtype)
    source, target = [], []
    for begin, width, length in zip(start, patch, array.shape, strict=False):
        low, high = max(begin, 0), min(begin + width, length)
        source.append(slice(low, high))
        target.append(slice(low - begin, high - begin))
    result[tuple(target)] = array[tuple(source)]
    return result


def _example(
    case: CachedCase,
    challenge: Challenge,
    patch: tuple[int, ...],
    foreground: float,
    rng: np.random.Generator,
) -> dict[str, object]:
    voxel = None
    # Drawn always, so that the positions at one `foreground` are those at another where both
    # take the uniform branch.
    in_foreground = rng.random() < foreground
    if in_foreground:
        voxel = draw_voxel(case.foreground, rng)
    start = crop_start(case.shape, patch, rng, voxel)
    target, weights = challenge.encode(crop(case.label, start, patch), case.kind)
    image = crop(case.image, start, patch).astype(np.float32, copy=False)
    return {"image": image, "target": target, "weights": weights, "id": case.id}


def _slice(
    case: CachedCase, challenge: Challenge, patch: tuple[int, ...], index: int
) -> dict[str, object]:
    if case.shape[1:] != patch:
        raise ValueError(f"slices are {case.shape[1:]}, expected {patch}")
    target, weights = challenge.encode(np.array(case.label[index]), case.kind)
    image = np.array(case.image[index], np.float32)
    name = case.id if case.shape[0] == 1 else f"{case.id}, slice {index}"
    return {"image": image, "target": target, "weights": weights, "id": name}
