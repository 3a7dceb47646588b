"""Cases decoded and prepared once, then memory-mapped.

One folder per case, named by the case and a digest of everything its content depends on: other
contents of the source files, another label convention or preprocessing make a new folder, and no
array is ever updated in place. Several runs may build the same cache at once.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crossdim_jax.challenges.base import Challenge
from crossdim_jax.data import cache_entry, digests, workers
from crossdim_jax.data.cache_entry import CachedCase
from crossdim_jax.errors import ConfigError, DataError, ManyErrors, check_name
from crossdim_jax.imaging import preprocess
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.runtime.progress import bar
from crossdim_jax.storage.files import ANOTHER_FOLDER, writing

CACHE_VERSION = 3  # raise it when the meaning of the cached files changes
DTYPES = ("float32", "float16")
MAX_FOREGROUND = 50_000  # voxels kept of each region of a case, to draw patches that hold them
_MASKS = 2**26  # voxels times regions whose masks are held at a time
_STALE_S = 24 * 3600.0  # a temporary file or folder this old belongs to a run that was killed


class CacheWriteError(DataError):
    """Raised if the cache folder cannot be written to; no case is at fault."""


def build(
    challenge: Challenge,
    files: Sequence[CaseFiles],
    cache_root: str | os.PathLike,
    *,
    dtype: str = "float32",
    num_threads: int = 2,
    num_processes: int = 0,
    share: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
    progress: bool = True,
    failures: Sequence[tuple[str, str]] = (),
) -> list[CachedCase]:
    """Prepares every case that is not yet in the cache.

    It may be interrupted at any time, and goes on with what is missing when it is called again.

    Args:
      challenge: reads the cases.
      files: the cases, in any order.
      cache_root: created if need be.
      dtype: of the cached image, "float32" or "float16" (half the disk, 3 digits).
      num_threads: cases decoded at the same time; each needs memory for its full volume. 0 decodes
        one after another in the calling thread.
      num_processes: so many processes of their own decode instead; 0 for none.
      share: (index, count) of this process among those of a run on many hosts: each prepares its
        share first; then, after `wait`, what is missing still, such as on a disk of its own.
      wait: returns once all of them have called it.
      progress: a bar on stderr, if that is a terminal.
      failures: (case id, message) of cases that are not in `files` because they already failed
        when they were looked for (see `Challenge.cases`); reported first, with those that fail
        here.

    Returns:
      One entry per case, in the order of `files`.

    Raises:
      ManyErrors: some cases are faulty; every one has been tried, and the good ones are cached.
      DataError: the cache folder cannot be written to, or a process was killed.
      ConfigError: dtype is unknown or a number negative.
    """
    check_name("dtype", dtype, DTYPES)
    for name, number in (("num_threads", num_threads), ("num_processes", num_processes)):
        if number < 0:
            raise ConfigError(f"{name} is {number}; expected 0 (none extra) or more")
    root = Path(cache_root)
    with writing(root, "the cache", remedy=ANOTHER_FOLDER, kind=CacheWriteError):
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
    cache = _Cache(challenge, root, dtype)
    numbers = {"threads": num_threads, "processes": num_processes}
    index, count = share
    if count > 1:
        _prepare_all(cache, files[index::count], numbers, progress)
        wait()
    results = _prepare_all(cache, files, numbers, progress)
    faults = [
        (case.id, result.message)
        for case, result in zip(files, results, strict=True)
        if isinstance(result, _Fault)
    ]
    every = [*failures, *faults]
    if every:
        raise ManyErrors(
            f"{len(every)} of {len(files) + len(failures)} cases cannot be used; repair or remove "
            f"them, the others are ready in {root}",
            every,
        )
    return results


def key(challenge: Challenge, files: CaseFiles, content: digests.Content, dtype: str) -> str:
    """Digest of everything the cached content depends on."""
    everything = {
        "version": CACHE_VERSION,
        "case": [files.id, files.kind],
        "sources": [content.image, content.label],
        "challenge": challenge.fingerprint(),
        "preprocess": preprocess.PARAMETERS,
        "dtype": dtype,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Fault:
    """Reason why a case could not be prepared; with `error` if the case is not at fault."""

    message: str
    error: CacheWriteError | None = None


@dataclasses.dataclass(frozen=True)
class _Cache:
    """Cache of one challenge's cases in one folder, with images of one type; picklable."""

    challenge: Challenge
    root: Path
    dtype: str

    def find(self, files: CaseFiles, content: digests.Content) -> CachedCase | None:
        """Looks a case up; None if it is not in the cache."""
        folder, digest = self._place(files, content)
        return cache_entry.read(folder, digest, files.patient)

    def make(self, files: CaseFiles, content: digests.Content) -> CachedCase:
        """Prepares and stores a case, unless another process has done so meanwhile."""
        if found := self.find(files, content):
            return found
        prepared = self.challenge.prepare(self.challenge.load(files))
        if path := content.changed():
            raise DataError(f"{path}: was changed while it was read; run again once it is complete")
        folder, digest = self._place(files, content)
        arrays = {
            "image": _narrow(prepared.image, self.dtype),
            **({} if prepared.label is None else {"label": prepared.label}),
            "foreground": _foreground(self.challenge, prepared.label, digest),
        }
        case = CachedCase(
            id=files.id,
            patient=files.patient,
            folder=folder,
            shape=prepared.image.shape[:3],
            spacing_mm=prepared.spacing_mm,
            bbox=prepared.bbox,
            full_shape=prepared.full_shape,
            kind=prepared.kind,
            note=prepared.note,
        )
        with writing(self.root, "the cache", remedy=ANOTHER_FOLDER, kind=CacheWriteError):
            cache_entry.write(case, arrays, digest)
        return case

    def _place(self, files: CaseFiles, content: digests.Content) -> tuple[Path, str]:
        """Folder of a case, named by the case and its digest, and that digest."""
        digest = key(self.challenge, files, content, self.dtype)
        safe = re.sub(r"[^\w.-]", "_", files.id).encode()[:80].decode(errors="ignore")
        return self.root / f"{safe}-{digest[:16]}", digest


def _prepare_all(
    cache: _Cache, files: Sequence[CaseFiles], numbers: Mapping[str, int], progress: bool
) -> list[CachedCase | _Fault]:
    """Results of all cases: cached ones at once, the others by threads or processes."""
    record, total = digests.Digests(cache.root), len(files)
    looks = [functools.partial(_look, cache, record, case) for case in files]
    shown = {"enabled": progress, "terminal_only": True, "total": total}
    # Shown after a while only: mostly they are cached, and nothing is read.
    looking = bar(description="looking for cases", **shown, delay=2, leave=False)
    looked = dict(_done(looks, looking, threads=numbers["threads"]))
    record.save()
    results = {index: looked[index][1] for index in range(total)}
    missing = [index for index, result in results.items() if result is None]
    if len(missing) < 2:  # not worth a process
        numbers = {**numbers, "processes": 0}
    work = [
        functools.partial(_try, cache.make, files[index], looked[index][0]) for index in missing
    ]
    preparing = bar(description="preparing cases", **shown, initial=total - len(missing))
    with contextlib.closing(_done(work, preparing, **numbers)) as attempts:
        for index, result in attempts:
            if isinstance(result, _Fault) and result.error is not None:
                raise result.error
            results[missing[index]] = result
    return list(results.values())


def _done(work: Sequence[Callable], bar: tqdm, **numbers: int) -> Iterator[tuple[int, Any]]:
    """`workers.run`, shown by the bar."""
    with bar, contextlib.closing(workers.run(work, **numbers)) as results:
        for result in results:
            bar.update()
            yield result


def _look(
    cache: _Cache, record: digests.Digests, files: CaseFiles
) -> tuple[digests.Content | None, CachedCase | _Fault | None]:
    """Content of a case's files, and the case if it is in the cache."""
    try:
        content = record.of_case(files)
    except DataError as error:
        return None, _Fault(str(error))
    return content, _try(cache.find, files, content)


def _try(work: Callable, *args: Any) -> Any:
    """Result of the work, or a `_Fault`: one faulty case does not stop the others."""
    try:
        return work(*args)
    except CacheWriteError as error:
        return _Fault(str(error), error)
    except DataError as error:
        return _Fault(str(error))
    except Exception as error:
        return _Fault(f"{type(error).__name__}: {error}")


def _narrow(image: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = image.astype(dtype)
    if not np.isfinite(narrow).all():
        raise DataError(f"z-scores up to {np.abs(image).max():.3g} do not fit {dtype}")
    return narrow


def _foreground(challenge: Challenge, label: np.ndarray | None, digest: str) -> np.ndarray:
    """Foreground (n, 4) of a label (z, y, x), see `CachedCase.foreground`; reproducible."""
    if label is None:
        return np.zeros((0, 4), np.uint16)
    rng = np.random.default_rng(int(digest[:16], 16))
    rows = [np.zeros((0, 4), np.int64)]
    for region, flat in enumerate(_voxels_of_regions(challenge, label)):
        if flat.size > MAX_FOREGROUND:
            flat = np.sort(rng.choice(flat, MAX_FOREGROUND, replace=False))
        places = np.unravel_index(flat, label.shape)
        rows.append(np.stack([np.full(flat.size, region), *places], axis=-1))
    small = max(label.shape) <= np.iinfo(np.uint16).max
    return np.concatenate(rows).astype(np.uint16 if small else np.uint32)


def _voxels_of_regions(challenge: Challenge, label: np.ndarray) -> list[np.ndarray]:
    """Flat indices of the voxels of each region, ascending.

    Some slices at a time: masks of a hundred regions of a large volume are more than memory holds.
    """
    depth = max(1, _MASKS // (label[0].size * max(1, len(challenge.regions))))
    slabs: list[list[np.ndarray]] = []
    for z in range(0, len(label), depth):
        masks = challenge.masks(label[z : z + depth])
        first = z * label[0].size
        slabs.append([np.flatnonzero(masks[..., r]) + first for r in range(masks.shape[-1])])
    return [np.concatenate(parts) for parts in zip(*slabs, strict=True)]


def _remove_stale(root: Path) -> None:
    for path in root.glob(".*.tmp*"):  # of `cache_entry.write` and of `files.replacing`
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
