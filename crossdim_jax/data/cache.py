"""Cases decoded and prepared once, then memory-mapped.

One folder per case, named by the case and a digest of everything its content depends on: a changed
source file, label convention or preprocessing makes a new folder, and nothing is ever updated in
place. Several runs may build the same cache at once.
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
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tqdm

from crossdim_jax.challenges import CaseFiles, Challenge
from crossdim_jax.data import preprocess, workers
from crossdim_jax.errors import ConfigError, DataError, ManyErrors

CACHE_VERSION = 2  # raise it when the meaning of the cached files changes
DTYPES = ("float32", "float16")
MAX_FOREGROUND = 50_000  # voxels kept per case to draw patch centres from
_META = "meta.json"
_STALE_S = 24 * 3600.0  # a temporary folder this old belongs to a run that was killed


class CacheWriteError(DataError):
    """The cache folder cannot be written to; no case is at fault."""


@dataclasses.dataclass(frozen=True)
class CachedCase:
    """One prepared case on disk.

    Files are opened at each access and closed with the last reference: a map held open for every
    case of a large set would exceed the usual limit of open files.

    Attributes:
      id, patient: as in `CaseFiles`.
      folder: holds image.npy, label.npy, foreground.npy and meta.json.
      shape: (z, y, x) of the crop.
      spacing_mm: (z, y, x).
      bbox, full_shape: where the crop lay, see `preprocess.Prepared`.
      kind: as in `CaseFiles`.
    """

    id: str
    patient: str
    folder: Path
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    bbox: preprocess.BBox
    full_shape: tuple[int, int, int]
    kind: str = ""

    @property
    def image(self) -> np.ndarray:
        """(z, y, x, c) float32 or float16, z-scored; read-only, memory-mapped."""
        return self._map("image")

    @property
    def label(self) -> np.ndarray | None:
        """(z, y, x) uint8 in the convention of the files; None if the case has no label."""
        return self._map("label") if (self.folder / "label.npy").exists() else None

    @property
    def foreground(self) -> np.ndarray:
        """(n, 3) uint16: z, y, x of voxels in any region; all of them or a random subset."""
        return self._map("foreground")

    def _map(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            # Empty arrays cannot be mapped.
            mode = "r" if name != "foreground" else None
            return np.load(path, mmap_mode=mode, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{path}: the cached case cannot be read ({error}); remove the folder "
                f"{self.folder} and run again"
            ) from error


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
    if dtype not in DTYPES:
        raise ConfigError(f"the cache's dtype is {dtype!r}; known: {', '.join(DTYPES)}")
    for name, number in (("num_threads", num_threads), ("num_processes", num_processes)):
        if number < 0:
            raise ConfigError(f"{name} is {number}; expected 0 (none extra) or more")
    root = Path(cache_root)
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
    make = functools.partial(_try, challenge, root=root, dtype=dtype)
    numbers = {"threads": num_threads, "processes": num_processes}
    index, count = share
    if count > 1:
        _make(make, files[index::count], numbers, progress)
        wait()
    results = _make(make, files, numbers, progress)
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


def key(challenge: Challenge, files: CaseFiles, dtype: str) -> str:
    """The digest of everything the cached content depends on.

    Raises DataError if a source file is missing.
    """
    sources = []
    paths = list(files.images)
    if files.label is not None:
        paths += sorted(files.label.iterdir()) if files.label.is_dir() else [files.label]
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        sources.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    content = {
        "version": CACHE_VERSION,
        "case": [files.id, files.patient, files.kind],
        "sources": sources,
        "labelled": files.label is not None,
        "challenge": challenge.fingerprint(),
        "preprocess": preprocess.PARAMETERS,
        "dtype": dtype,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Fault:
    """Why a case could not be prepared; with `error` if that is not the case's fault."""

    message: str
    error: CacheWriteError | None = None


def _make(
    make: Callable[[CaseFiles], "CachedCase | _Fault"],
    files: Sequence[CaseFiles],
    numbers: dict[str, int],
    progress: bool,
) -> list["CachedCase | _Fault"]:
    """The result of each case: those that are there at once, the others by threads or processes."""
    results = {index: make(case, only_look=True) for index, case in enumerate(files)}
    missing = [index for index, result in results.items() if result is None]
    if len(missing) < 2:  # not worth a process
        numbers = numbers | {"processes": 0}
    work = [functools.partial(make, files[index]) for index in missing]
    bar = tqdm.tqdm(
        total=len(files),
        initial=len(files) - len(missing),
        desc="preparing cases",
        unit="case",
        disable=None if progress else True,
    )
    with bar, contextlib.closing(workers.run(work, **numbers)) as attempts:
        for index, result in attempts:
            if isinstance(result, _Fault) and result.error is not None:
                raise result.error
            results[missing[index]] = result
            bar.update()
    return list(results.values())


def _try(
    challenge: Challenge, files: CaseFiles, *, root: Path, dtype: str, only_look: bool = False
) -> "CachedCase | _Fault | None":
    """`_cached`, or why not: whatever is wrong with one case, the others are still tried."""
    try:
        return _cached(challenge, files, root, dtype, only_look=only_look)
    except CacheWriteError as error:
        return _Fault(str(error), error)
    except DataError as error:
        return _Fault(str(error))
    except Exception as error:
        return _Fault(f"{type(error).__name__}: {error}")


def _cached(
    challenge: Challenge, files: CaseFiles, root: Path, dtype: str, *, only_look: bool = False
) -> CachedCase | None:
    """The case from the cache; prepared and stored first if it is not there, or None."""
    digest = key(challenge, files, dtype)
    safe = re.sub(r"[^\w.-]", "_", files.id)
    folder = root / f"{safe}-{digest[:16]}"
    found = _open(folder, digest)
    if found or only_look:
        return found
    prepared = challenge.prepare(challenge.load(files))
    arrays = {"image": _narrow(prepared.image, dtype)}
    foreground = np.zeros((0, 3), np.uint16)
    if prepared.label is not None:
        arrays["label"] = prepared.label
        foreground = _foreground(challenge.masks(prepared.label).any(axis=-1), digest)
    arrays["foreground"] = foreground
    case = CachedCase(
        id=files.id,
        patient=files.patient,
        folder=folder,
        shape=prepared.image.shape[:3],
        spacing_mm=prepared.spacing_mm,
        bbox=prepared.bbox,
        full_shape=prepared.full_shape,
        kind=prepared.kind,
    )
    with _writing(root):
        _store(case, arrays, digest)
    return case


def _narrow(image: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = image.astype(dtype)
    if not np.isfinite(narrow).all():
        raise DataError(f"z-scores up to {np.abs(image).max():.3g} do not fit {dtype}")
    return narrow


def _foreground(mask: np.ndarray, digest: str) -> np.ndarray:
    """Coordinates (n, 3) of the true voxels; a random subset, the same every time, if too many."""
    flat = np.flatnonzero(mask)
    if flat.size > MAX_FOREGROUND:
        rng = np.random.default_rng(int(digest[:16], 16))
        flat = np.sort(rng.choice(flat, MAX_FOREGROUND, replace=False))
    return np.stack(np.unravel_index(flat, mask.shape), axis=-1).astype(np.uint16)


def _store(case: CachedCase, arrays: dict[str, np.ndarray], digest: str) -> None:
    """Writes the folder under another name and renames it: it is there whole, or not at all."""
    temporary = case.folder.with_name(f".{case.folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir()
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        meta = dataclasses.asdict(case) | {
            "key": digest,
            "bytes": {path.name: path.stat().st_size for path in sorted(temporary.iterdir())},
        }
        del meta["folder"]
        (temporary / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        try:
            os.replace(temporary, case.folder)
        except OSError:
            # Another run was faster, and its content is the same; else what is there is damaged.
            if not _open(case.folder, digest):
                shutil.rmtree(case.folder)
                os.replace(temporary, case.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open(folder: Path, digest: str) -> CachedCase | None:
    """The case in `folder` if it is complete, by its own account of file sizes."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in meta["bytes"]}
        if meta["key"] != digest or sizes != meta["bytes"]:
            return None
        return CachedCase(
            id=meta["id"],
            patient=meta["patient"],
            folder=folder,
            shape=tuple(meta["shape"]),
            spacing_mm=tuple(meta["spacing_mm"]),
            bbox=tuple(tuple(bounds) for bounds in meta["bbox"]),
            full_shape=tuple(meta["full_shape"]),
            kind=meta["kind"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _writing(root: Path):
    try:
        yield
    except OSError as error:
        raise CacheWriteError(
            f"{root}: the cache cannot be written there ({error}); free some space or choose "
            "another cache folder"
        ) from error


def _remove_stale(root: Path) -> None:
    for path in root.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                shutil.rmtree(path)
