"""The run folder: what it was started with, and whether that is what is wanted now."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util

from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.runtime import stop
from crossdim_jax.storage.files import write_text, writing
from crossdim_jax.storage.records import COUNT, FIELDS, NUMBER, TEXT, read_record
from crossdim_jax.text import without_paths

logger = logging.getLogger(__name__)

# What lies in it.
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
UNREADABLE_METRICS = "metrics.unreadable.jsonl"  # lines of it that could not be read
TENSORBOARD = "tensorboard"
CONFIG = "config.json"
SPLITS = "splits.json"
WEIGHTS = "weights.json"
RUN = "run.json"
PLAN = "plan.json"
DATASET = "dataset.json"  # what the data set said of its channels and labels
POSTPROCESSING = "postprocessing.json"
FINISHED = "finished.json"  # of a training that has ended: which weights were kept
PREDICTIONS = "predictions"
EVALUATION = "evaluation"

# Fields, as patterns for the whole dotted name, that change neither the batches nor the updates.
HARMLESS = (
    r"(.*\.)?log_every_steps",
    r"train\.(tensorboard|choose|keep_state)",
    r"(.*\.)?checkpoint_every_steps",
    r"(.*\.)?keep",
    r"(.*\.)?num_(threads|processes)",
    r"(.*\.)?workdir",
    r"data\.(root|cache|changed_cases)",  # `run.content` knows what the cases hold
    r"challenge\.(root|fold)",  # the same as data.root, and once as data.split.fold
    r"weights\.file",  # read at the first start only
    r"(.*\.)?skip_nonfinite",  # up to now all were finite, or few enough
    r"plan(\..*)?",  # a budget: what was planned with it is in the other fields
    r"(inference|evaluate|predict|report|mesh)(\..*)?",
)


class InUseError(DataError):
    """Another process does the same in this run folder."""


def claim(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    harmless: Sequence[str] = HARMLESS,
    defaults: Mapping[str, Any] | None = None,
    write: bool = True,
) -> Path:
    """Makes the folder of a run, or checks that it is the folder of this run.

    A folder without a checkpoint is nobody's: there is nothing in it to go on with.

    Args:
      workdir: made if it does not exist.
      config: plain values that JSON can hold.
      harmless: patterns (`re.fullmatch`) of dotted field names that may change on a resume.
      defaults: the config file's values without overrides. A field that the folder's record does
        not have came with a later version, and its default does what was done without it: such a
        field may be there with its default, and with no other value.
      write: False only checks: on all processes but the first.

    Returns:
      the path of its `config.json`, which holds `config` as it is now.

    Raises:
      ConfigError: the folder is of a run with another config; the message lists every difference.
      DataError: the folder cannot be written, or its record of the config is damaged, or is gone
        and its checkpoints do not hold it either.
    """
    workdir = Path(workdir)
    path = workdir / CONFIG
    config = json.loads(json.dumps(config))  # tuples become lists, as they will be when read
    with _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        resumed = has_checkpoint(workdir)
    if resumed:
        recorded, source = recorded_config(workdir)
        _refuse_other(workdir, recorded, config, harmless, defaults or {})
        if write and source != path:
            logger.warning("%s: was not there; it is written anew, as in %s", path, source)
    if write:
        write_json(path, config)
    return path


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """The config that the run was started with.

    Raises DataError, naming the file, if it is missing or no record of a config.
    """
    remedy = "put it back or start in a new folder"
    return read_record(Path(workdir) / CONFIG, constants=True, remedy=remedy)


def read_cost(workdir: str | os.PathLike) -> dict[str, Any]:
    """Cost of the training, see `run.cost`; empty if that is not recorded.

    Raises DataError, naming the file, if it is damaged.
    """
    path = Path(workdir) / RUN
    if not os.path.lexists(path):
        return {}
    forms = {"parameters": COUNT, "device": TEXT, "devices": COUNT, "peak_memory_mb": NUMBER}
    forms["training_cases"] = TEXT
    return read_record(path, optional=forms, remedy="the next training makes it anew")


def of_run(workdir: str | os.PathLike) -> Path | None:
    """The folder that says how a run was made: its own, or that of its first fold; None if none."""
    folders = [Path(workdir), *sorted(Path(workdir).glob("fold_*"))]
    return next((folder for folder in folders if has_checkpoint(folder)), None)


def description(workdir: str | os.PathLike) -> Path | None:
    """The file in which a run keeps what its data set said; None if it has none."""
    folder = of_run(workdir)
    path = None if folder is None else folder / DATASET
    return path if path is not None and os.path.lexists(path) else None


def recorded_config(workdir: Path) -> tuple[dict[str, Any], Path]:
    """The config of a run that has checkpoints, and where it was found.

    Every checkpoint holds it too, without the folders in it: that counts if config.json is gone.
    """
    path = workdir / CONFIG
    if os.path.lexists(path):
        return read_config(workdir), path
    config, source = _in_checkpoints(workdir)
    if not config:
        raise DataError(
            f"{path}: there is no such file, and the checkpoints beside it do not say with which "
            "config they were trained; put it back, or give another --workdir"
        )
    return config, source


def _in_checkpoints(workdir: str | os.PathLike) -> tuple[dict[str, Any], Path]:
    """The config that the newest checkpoint with a readable record holds, and that record's path.

    The config is empty if no checkpoint holds one. Paths in it are `.../` and their last part.
    """
    folder = Path(workdir) / CHECKPOINTS
    steps = sorted((int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()), reverse=True)
    for step in steps:
        path = folder / str(step) / "meta" / "metadata"  # the file that Orbax's JsonSave writes
        with contextlib.suppress(DataError):
            record = read_record(path, {"config": FIELDS}, constants=True, remedy="not used")
            if record["config"]:
                return record["config"], path
    return {}, folder


def write_json(path: Path, record: Mapping[str, Any], *, sort_keys: bool = True) -> None:
    """Writes a record of the run folder. Raises DataError, naming the folder, if it cannot.

    sort_keys: False where the order of the fields says something.
    """
    with _writing(path.parent):
        write_text(path, json.dumps(record, indent=2, sort_keys=sort_keys) + "\n")


def _writing(workdir: Path) -> contextlib.AbstractContextManager[None]:
    remedy = "choose another --workdir or make room"
    return writing(workdir, "the run folder", remedy=remedy)


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """True if a training has got as far as its first checkpoint there."""
    # One that is only half written has a longer name.
    found = (Path(workdir) / CHECKPOINTS).glob("[0-9]*")
    return any(path.name.isdigit() for path in found)


def finished(workdir: str | os.PathLike) -> dict[str, Any]:
    """Kept weights, "weights" ("best" or "last") and "step", of a run that cannot be trained on.

    Empty for any other. Raises DataError, naming the file, if the record of it is damaged.
    """
    path = Path(workdir) / FINISHED
    if not has_checkpoint(workdir) or not os.path.lexists(path):
        return {}
    remedy = 'it holds {"weights": "best" or "last", "step": NUMBER}, of the weights that are there'
    return read_record(path, {"weights": TEXT, "step": COUNT}, remedy=remedy)


def require_same_network(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Raises ConfigError if a config describes another network than the run was trained with.

    Weights of the same shapes would load all the same, and segment wrongly. `defaults` as in
    `claim`.

    Raises DataError if the folder is not of a run.
    """
    workdir = Path(workdir)
    if not has_checkpoint(workdir) and not os.path.lexists(workdir / CONFIG):
        raise DataError(
            f"{workdir / CONFIG}: not found; give the --workdir of a run that was trained"
        )
    fields = ("model", "challenge.name", "challenge.modalities")
    config = json.loads(json.dumps(config))
    free = [rf"(?!({'|'.join(map(re.escape, fields))})(\.|$)).*", r"model\.(ops|dtype)"]
    _refuse_other(workdir, recorded_config(workdir)[0], config, free, defaults or {})


@contextlib.contextmanager
def only_process(workdir: str | os.PathLike, doing: str) -> Iterator[None]:
    """Holds the run folder against other processes that would do the same in it.

    The lock is the operating system's, on an open file: it ends with the process, however that
    ends, and nothing is left that would have to be removed. The file stays.

    Args:
      workdir: made if it does not exist.
      doing: what is done, such as "training"; each has a lock of its own.

    Raises InUseError, naming the process that holds it, if there is one.
    """
    path = Path(workdir) / f".{doing}.lock"
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8", errors="replace")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InUseError(
                f"{path.parent}: another process is {doing} in this run folder: "
                f"{file.read().strip() or 'it has not said which'}. Wait for it or stop it, or "
                "give another --workdir"
            ) from error
        except OSError as error:  # some network file systems have no locks: go on without
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        with contextlib.suppress(OSError):  # a full disk must not keep a run from being read
            file.truncate(0)
            file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
            file.flush()

        def forget() -> None:  # whoever gets the folder next need not know on which machine it was
            with contextlib.suppress(OSError):
                os.truncate(path, 0)

        with stop.at_the_end(forget):
            yield


def in_use(workdir: str | os.PathLike, doing: str) -> bool:
    """True while a process holds `only_process`, or if it was killed then; holds nothing itself."""
    path = Path(workdir) / f".{doing}.lock"
    return os.path.lexists(path) and path.stat().st_size > 0


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted field name -> (old, new) where two configs differ; `MISSING` for no such field."""
    old, new = _flatten(old), _flatten(new)
    return {
        name: (old.get(name, MISSING), new.get(name, MISSING))
        for name in sorted(old.keys() | new.keys())
        if old.get(name, MISSING) != new.get(name, MISSING)
    }


MISSING = "(absent)"


def _refuse_other(
    workdir: Path,
    old: Mapping[str, Any],
    config: Mapping[str, Any],
    harmless: Sequence[str],
    defaults: Mapping[str, Any],
) -> None:
    defaults = _flatten(json.loads(json.dumps(defaults)))
    found = {
        name: (was, now)
        for name, (was, now) in differences(old, config).items()
        if not any(re.fullmatch(pattern, name) for pattern in harmless)
        and not (was == MISSING and name in defaults and defaults[name] == now)
        and was != without_paths(now, [workdir / "any"])  # as checkpoints record it
    }
    if found:
        ended = (
            " Its training has ended, and only its weights were kept." if finished(workdir) else ""
        )
        lines = "\n".join(f"  {name}: {was!r} -> {now!r}" for name, (was, now) in found.items())
        raise ConfigError(
            f"{workdir}: this folder holds a run with another config (there -> now):\n{lines}\n"
            f"To go on with that run use its config; for a new run give another --workdir.{ended}"
        )


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by their dotted names; an empty section is a value of its own."""
    flat = traverse_util.flatten_dict(dict(tree), keep_empty_nodes=True, sep=".")
    return {name: {} if v is traverse_util.empty_node else v for name, v in flat.items()}
