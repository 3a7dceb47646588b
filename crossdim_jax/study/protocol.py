"""The protocol of a study: written before its first run, compared with every later start."""

import datetime
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

import crossdim_jax
from crossdim_jax.errors import ConfigError
from crossdim_jax.storage import run_folder
from crossdim_jax.storage.records import COUNT, FIELDS, NUMBER, TEXT, Form, objects_of, read_record
from crossdim_jax.study import grid
from crossdim_jax.study.grid import PlannedRun, Study
from crossdim_jax.text import without_paths

FILE = "protocol.json"
_REMEDY = "put it back as the study wrote it, or start in another folder"
_LIST = Form("a list", lambda v: isinstance(v, list))
_EXPECTED = {
    "question": TEXT,
    "arms": objects_of(FIELDS),
    "reference": TEXT,
    "metric": TEXT,
    "reach": NUMBER,
    "cases": _LIST,
    "numbers": Form(
        "a list of numbers of cases",
        lambda v: isinstance(v, list) and all(map(COUNT.holds, v)),
    ),
    "seeds": Form("a list of seeds", lambda v: isinstance(v, list) and all(map(COUNT.holds, v))),
    "compare": Form(
        "a list of pairs of arms",
        lambda v: isinstance(v, list) and all(isinstance(p, list) and len(p) == 2 for p in v),
    ),
    "common": FIELDS,
    "config": FIELDS,
    "planned": objects_of(FIELDS),
    "budget": objects_of(FIELDS),
    "held_out": _LIST,
    "training": objects_of(_LIST),
    "amendments": _LIST,
}
# What a later start may change; the other fields make runs that are there another thing.
OPEN = (
    "question", "reference", "metric", "reach", "cases", "numbers", "seeds", "compare", "version",
    "jax",
)  # fmt: skip
# Fields that a run may change when it goes on, but not the runs of a study: other weights would be
# scored, or the same otherwise.
SCORED = (r"train\.choose", r"inference\.(?!window_batch).*")


def make(
    study: Study,
    *,
    numbers: Sequence[int],
    config: Mapping[str, Any],
    planned: Mapping[str, Mapping[str, Any]],
    budget: Mapping[str, Mapping[str, Any]],
    held_out: Sequence[str],
    training: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The protocol of a study, as JSON holds it; no paths but their last parts.

    Args:
      study: what is compared.
      numbers: of training cases, one for each of `study.cases`.
      config: that the arms are changes of.
      planned: arm -> {field that says "auto": value}.
      budget: arm -> its steps, batch and patch.
      held_out: ids of the cases that are scored.
      training: "n_CASES/seed_S" -> ids of the cases that train.
    """
    record = {
        "question": study.question,
        "arms": study.arms,
        "reference": study.reference,
        "compare": study.compare,
        "metric": study.metric,
        "reach": study.reach,
        "cases": study.cases,
        "numbers": numbers,
        "seeds": study.seeds,
        "common": {**grid.ENFORCED, **study.common},
        "fold_by_seed": study.fold_by_seed,
        "budget": budget,
        "held_out": held_out,
        "training": training,
        "planned": planned,
        "config": config,
        "version": crossdim_jax.__version__,
        "jax": jax.__version__,
        "date": _now(),
        "amendments": [],
    }
    return json.loads(json.dumps(without_paths(record)))


def read(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """The protocol that a study's folder holds; None if it holds none.

    Raises DataError if it is damaged.
    """
    path = Path(workdir) / FILE
    if not os.path.lexists(path):
        return None
    return read_record(path, _EXPECTED, remedy=_REMEDY, constants=True)


def write(workdir: Path, protocol: Mapping[str, Any]) -> None:
    """Writes the protocol. Raises DataError if it cannot be written."""
    run_folder.write_json(workdir / FILE, protocol, sort_keys=False)


def study(protocol: Mapping[str, Any]) -> Study:
    """The study that a protocol is of."""
    return Study(
        question=protocol["question"],
        arms=protocol["arms"],
        reference=protocol["reference"],
        cases=tuple(protocol["cases"]),
        seeds=tuple(protocol["seeds"]),
        metric=protocol["metric"],
        reach=protocol["reach"],
        compare=tuple((a, b) for a, b in protocol["compare"]),
        common=protocol["common"],
        fold_by_seed=protocol.get("fold_by_seed", False),
    )


def runs(protocol: Mapping[str, Any], workdir: Path) -> list[PlannedRun]:
    """The runs that a protocol asks for."""
    return grid.runs(study(protocol), protocol["numbers"], workdir)


def amended(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    started: Collection[str],
    done: int,
) -> dict[str, Any]:
    """The protocol of a later start: the new one, with all that was changed since the first.

    Args:
      old: as the folder holds it.
      new: of this start.
      started: names of the runs that are begun.
      done: how many of them are finished.

    Raises:
      ConfigError: runs that are begun would be another thing now; every difference is named.
    """
    if not started:  # nobody can have seen a result
        return dict(new)
    if other := [*_other_arms(old, new, started), *_other_runs(old, new)]:
        raise ConfigError(
            "the study's folder holds runs of another study (there -> now):\n  "
            + "\n  ".join(other)
            + "\nTo go on with that study put these back; a changed arm needs another name, and "
            "another study another --workdir"
        )
    result = {**new, "date": old["date"], "amendments": list(old["amendments"])}
    if changes := [*_arms(old, new), *_open(old, new)]:
        result["amendments"].append({"date": _now(), "runs_done": done, "changes": changes})
    return result


def _other_arms(
    old: Mapping[str, Any], new: Mapping[str, Any], started: Collection[str]
) -> Iterator[str]:
    """Differences of the arms that have runs."""
    begun = {name.partition("/")[0] for name in started}
    for arm in sorted(begun & set(old["arms"]) & set(new["arms"])):
        for name in ("arms", "planned", "budget"):
            if name == "arms" or arm in old[name]:
                found = run_folder.differences(old[name][arm], new[name].get(arm, {}))
                for field, (was, now) in found.items():
                    yield f"arm {arm}, {field}: {was!r} -> {now!r}"


def _other_runs(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Differences of what all runs share."""
    for field, (was, now) in run_folder.differences(_shared(old), _shared(new)).items():
        scored, harmless = (
            any(re.fullmatch(pattern, field) for pattern in patterns)
            for patterns in (SCORED, run_folder.HARMLESS)
        )
        if (scored or not harmless) and now != run_folder.MISSING != was:
            yield f"{field}: {was!r} -> {now!r}"
    for name in sorted(old["training"].keys() & new["training"].keys()):
        if old["training"][name] != new["training"][name]:
            yield f"training cases of {name}: {_others(old['training'], new['training'], name)}"
    if old["held_out"] != new["held_out"] and not new["fold_by_seed"]:  # more folds are more cases
        yield f"held-out cases: {_others(old, new, 'held_out')}"


def _shared(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted field -> value in every arm that does not change it."""
    return flatten_dict(protocol["config"], keep_empty_nodes=True, sep=".") | protocol["common"]


def _others(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> str:
    gone, come = (sorted(set(a[name]) - set(b[name]))[:5] for a, b in ((old, new), (new, old)))
    return f"without {', '.join(gone) or 'none'}, with {', '.join(come) or 'none'} besides"


def _arms(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = old["arms"], new["arms"]
    for arm in after:
        if arm not in before:
            yield f"arm {arm} added"
        elif before[arm] != after[arm]:
            yield f"arm {arm}, of which no run was begun: {before[arm]} -> {after[arm]}"
    yield from (f"arm {arm} left out" for arm in before if arm not in after)


def _open(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in OPEN:
        if name != "numbers" and old.get(name) != new[name]:
            yield f"{name} {old.get(name)} -> {new[name]}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
