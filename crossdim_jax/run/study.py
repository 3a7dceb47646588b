"""A study: runs that differ in one thing, trained one after another, then compared in pairs.

The folder of a study holds ordinary run folders, `ARM/n_CASES/seed_S`, the protocol that was
written before the first of them, and in the end the page with its numbers. Each run goes on where
it was, and one that is done is left as it is.
"""

import contextlib
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from crossdim_jax.errors import ConfigError, CrossdimError, ManyErrors
from crossdim_jax.run import config as config_lib
from crossdim_jax.run import config_gate, done, from_config, study_plan, train
from crossdim_jax.run.study_plan import Plan
from crossdim_jax.runtime import stop
from crossdim_jax.runtime.distributed import say
from crossdim_jax.storage import run_folder
from crossdim_jax.storage.files import duration
from crossdim_jax.storage.records import TEXT, read_record
from crossdim_jax.study import collect, grid, page, protocol
from crossdim_jax.study.grid import PlannedRun
from crossdim_jax.text import without_paths

FAILED = "failed.json"  # in the folder of a run that could not be made
POLL_S = 0.5  # between two looks whether another process has settled the study


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    fields: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    part: str = "",
) -> Path:
    """Makes the runs of a study, or goes on with them; returns the path of its page.

    Args:
      config: locked, that the arms are changes of.
      workdir: folder of the study.
      fields: of the study file, see `grid.read`.
      defaults: the config file's values without overrides.
      part: of the runs, see `grid.part`; several parts may run at once on one folder.

    Raises:
      ConfigError: the study cannot start, with all that is wrong; or its folder is of another.
      DataError, ManyErrors: cases are missing or faulty.
      ManyErrors: some runs could not be made; the others are, and the page is written.
    """
    workdir = _checked(workdir)
    with _alone(workdir, "planning"):
        plan = study_plan.make(config, workdir, grid.read(fields), defaults=defaults)
        mine = grid.part(plan.runs, part)
        _write_protocol(plan, workdir)
    failed = _make_all(plan, mine)
    path = report(workdir)
    if failed:
        say(str(path))
        raise ManyErrors(
            f"{workdir}: {len(failed)} of {len(mine)} runs could not be made; the others are. "
            "Correct what is wrong, and the same command makes those that are missing",
            failed,
        )
    return path


def is_study(workdir: str | os.PathLike) -> bool:
    """True if a folder is that of a study."""
    return os.path.lexists(Path(workdir) / protocol.FILE)


def report(workdir: str | os.PathLike) -> Path:
    """Writes the page of a study from what its folder holds; returns its path."""
    workdir = Path(workdir)
    stop.enter(stop.repeatable("reporting"))
    with _alone(workdir, "reporting"):
        recorded = protocol.read(workdir)
        if recorded is None:
            raise ConfigError(f"{workdir / protocol.FILE}: not found; give the folder of a study")
        planned = protocol.runs(recorded, workdir)
        results = collect.read([r for r in planned if done.seconds(r.workdir) is not None])
        lacking = [(r, _lacks(r)) for r in planned if done.seconds(r.workdir) is None]
        results = dataclasses.replace(results, missing=(*results.missing, *lacking))
        return page.write(workdir, protocol.study(recorded), recorded, results)


def _lacks(planned: PlannedRun) -> str:
    """Why a run has no result."""
    path = planned.workdir / FAILED
    if os.path.lexists(path):
        return f"failed: {read_record(path, {'error': TEXT}, remedy='remove it')['error']}"
    begun = run_folder.has_checkpoint(planned.workdir)
    return "not finished yet" if begun else "not started yet"


def plan(
    config: ConfigDict,
    workdir: str | os.PathLike,
    fields: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    part: str = "",
) -> str:
    """Number of runs, steps and time that a study will take, as lines of text; trains nothing."""
    workdir = _checked(workdir)
    made = study_plan.make(config, workdir, grid.read(fields), defaults=defaults)
    mine, budget = grid.part(made.runs, part), made.protocol["budget"]
    left = [r for r in mine if done.seconds(r.workdir) is None]
    steps = sum(budget[r.arm]["steps"] for r in left)
    speed = from_config.budget(config_lib.complete(config)).voxels_per_second
    estimate = _time(made.runs, left)
    if estimate is None and speed:
        voxels = sum(_voxels(budget[r.arm]) for r in left)
        estimate = f"{duration(voxels / speed)} of training steps"
    unknown = (
        "not known: --mode=plan --budget_gib=GIB without --study measures "
        "config.plan.voxels_per_second"
    )
    numbers = ", ".join(map(str, made.protocol["numbers"]))
    study = protocol.study(made.protocol)
    lines = {
        "question": study.question,
        "arms": f"{len(study.arms)}: {', '.join(study.arms)}; reference {study.reference}",
        "training cases": f"{numbers}; seeds {', '.join(map(str, study.seeds))}",
        "held-out cases": str(len(made.protocol["held_out"])),
        "runs": f"{len(mine)}, {len(mine) - len(left)} of them done",
        "steps": f"{steps:,} in the {len(left)} that are left",
        "time": estimate or unknown,
    }
    return "\n".join(
        [
            *([str(made.planned)] if made.planned else []),
            *(f"{name:<16}{text}" for name, text in lines.items()),
        ]
    )


def _voxels(budget: Mapping[str, Any]) -> float:
    return float(budget["steps"]) * budget["batch_size"] * math.prod(budget["patch"])


def _checked(workdir: str | os.PathLike) -> Path:
    """The study's folder. Raises ConfigError if it is none, or there are several processes."""
    if not str(workdir):
        raise ConfigError("--workdir is empty: say where the runs go, --workdir=runs/NAME")
    config_gate.check_path("--workdir", str(workdir))
    if run_folder.has_checkpoint(workdir):
        raise ConfigError(
            f"{workdir}: this folder holds a single run; give another --workdir for the study"
        )
    if jax.process_count() > 1:
        raise ConfigError(
            f"a study trains in one process, and there are {jax.process_count()}; start it by "
            "itself on each host, --study_part=I/N"
        )
    return Path(workdir)


@contextlib.contextmanager
def _alone(workdir: Path, doing: str) -> Iterator[None]:
    """Context manager: `run_folder.only_process`, once no other process does the same."""
    with contextlib.ExitStack() as stack:
        waited = False
        while True:
            try:
                stack.enter_context(run_folder.only_process(workdir, doing))
                break
            except run_folder.InUseError as error:
                if not waited:
                    say(f"waiting: {error}")
                waited = True
                time.sleep(POLL_S)
        yield


def _write_protocol(plan: Plan, workdir: Path) -> None:
    """Writes the protocol, or what was changed since it was first written."""
    old, new = protocol.read(workdir), plan.protocol
    if old is not None:
        started = study_plan.begun(workdir)
        count = sum(done.seconds(folder) is not None for folder in started)
        names = [folder.relative_to(workdir).as_posix() for folder in started]
        new = protocol.amended(old, new, started=names, done=count)
        for change in [
            c for a in new["amendments"][len(old["amendments"]) :] for c in a["changes"]
        ]:
            say(f"changed after {count} runs were done, which the page will say: {change}")
    if plan.planned is not None:
        say(str(plan.planned))
        plan.planned.write(workdir)
    protocol.write(workdir, new)


def _make_all(plan: Plan, mine: Sequence[PlannedRun]) -> list[tuple[str, str]]:
    """Makes the runs that are not done; (name, message) of those that could not be made."""
    failed = []
    for number, planned in enumerate(mine, 1):
        stop.enter(stop.repeatable(f"in the study, run {number} of {len(mine)}"))
        left = [r for r in mine[number - 1 :] if done.seconds(r.workdir) is None]
        remaining = _time(plan.runs, left)
        about = f" (about {remaining} left)" if remaining else ""
        try:
            with run_folder.only_process(planned.workdir, study_plan.DOING):
                _make(plan, planned, f"run {number} of {len(mine)}: {planned}{about}")
        except run_folder.InUseError as error:
            say(f"run {number} of {len(mine)}: {planned}: left to another process: {error}")
        except (CrossdimError, jax.errors.JaxRuntimeError) as error:
            say(f"run {number} of {len(mine)}: {planned} failed: {error}")
            failed.append((planned.name, str(error)))
            record = {"error": without_paths(str(error))}
            run_folder.write_json(planned.workdir / FAILED, record)
    return failed


def _make(plan: Plan, planned: PlannedRun, announcement: str) -> None:
    """Trains and evaluates a run unless it is done."""
    experiment = plan.build(planned)
    if done.is_done(experiment):
        return
    say(announcement)
    since = time.monotonic()
    train.run(experiment)
    (planned.workdir / FAILED).unlink(missing_ok=True)
    done.mark(planned.workdir, time.monotonic() - since)


def _time(runs: Sequence[PlannedRun], left: Sequence[PlannedRun]) -> str | None:
    """Time for the runs that are left, from those that are done; None if none has said."""
    taken: dict[str, list[float]] = {}
    for planned in runs:
        if (seconds := done.seconds(planned.workdir)) is not None:
            taken.setdefault(planned.arm, []).append(seconds)
    if not taken:
        return None
    of_all = statistics.median(s for times in taken.values() for s in times)
    return duration(sum(statistics.median(taken.get(r.arm, [of_all])) for r in left))
