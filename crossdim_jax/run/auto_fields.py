"""Fields of a config that say "auto": taken from the record of the run, or from a plan of its data.

A run's own config.json holds what was found, so that a run that goes on, and a prediction, take
what its training was started with; only a new training is planned.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from crossdim_jax.challenges.base import Challenge
from crossdim_jax.data import auto_plan, fingerprint, plan_record, splits
from crossdim_jax.data.plan_network import Network
from crossdim_jax.errors import DataError
from crossdim_jax.run import config as config_lib
from crossdim_jax.run import config_gate, from_config
from crossdim_jax.runtime import distributed
from crossdim_jax.storage import run_folder
from crossdim_jax.storage.records import Form, read_record

AUTO = "auto"
NONE = ("spacing_mm", "depth_kernels", "depth_strides", "checkpoint_every_steps")  # mean something
FIELDS = (*plan_record.Plan.FIELDS.values(), plan_record.Plan.INTENSITIES)
_LIST = Form("a list", lambda v: isinstance(v, list))
_REMEDY = "put it back as the training wrote it, or start in a new folder"


@dataclasses.dataclass(frozen=True)
class Planned:
    """Plan of a new training.

    Attributes:
      lines: see `plan_record.Plan.lines`.
      measured: of the cases, see `Fingerprint.record`.
    """

    lines: Sequence[Mapping[str, Any]]
    measured: Mapping[str, Any]

    def __str__(self) -> str:
        cases = len(self.measured["cases"])
        return f"plan from {cases} cases (each line is a field of the config):\n" + (
            plan_record.table(self.lines)
        )

    def write(self, workdir: Path) -> None:
        """Writes `plan.json`. Raises DataError if it cannot be written."""
        record = {"lines": list(self.lines), "fingerprint": self.measured}
        run_folder.write_json(workdir / run_folder.PLAN, record, sort_keys=False)


def resolve(
    config: ConfigDict, workdir: str | os.PathLike, *, trains: bool, folds: bool
) -> tuple[ConfigDict, Planned | None]:
    """The config with a value for each field that says "auto", and the plan if one was made.

    Args:
      config: locked.
      workdir: the run folder.
      trains: False for a mode that makes no step, which needs a run.
      folds: see `of_data`.

    Raises:
      ConfigError: a field is wrong.
      DataError, ManyErrors: there is no run, or cases are missing or faulty.
    """
    fields = asked(flatten(config))
    if not fields:
        return config, None
    found, planned = of_run(fields, workdir), None
    if found is None and not trains:
        raise DataError(
            f"{workdir}: holds no run, whose plan would say {', '.join(fields[:3])}, ...; give the "
            "--workdir of a run that was trained"
        )
    if found is None:
        found, planned = of_data(config_lib.complete(config), fields, folds=folds)
        distributed.say(str(planned))
    return filled(config, found), planned


def asked(values: Mapping[str, Any]) -> list[str]:
    """The fields that say "auto".

    values: dotted field -> value.
    """
    return [field for field in FIELDS if _is_auto(values.get(field))]


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == AUTO


def of_run(fields: Sequence[str], workdir: str | os.PathLike) -> dict[str, Any] | None:
    """Values of some fields as a run was started with; None if there is no run.

    Raises DataError if the run's record of its config is damaged.
    """
    folder = run_folder.of_run(workdir)
    if folder is None:
        return None
    recorded = _flat(run_folder.recorded_config(folder)[0])
    found = {field: plain(recorded.get(field)) for field in fields}
    name = plan_record.Plan.INTENSITIES
    if name in found:  # a section of its own
        inner = {k: v for k, v in recorded.items() if k.startswith(f"{name}.")}
        found[name] = _nested({k.removeprefix(f"{name}."): v for k, v in inner.items()}) or None
    return found


def of_data(
    full: ConfigDict, fields: Sequence[str], *, folds: bool
) -> tuple[dict[str, Any], Planned]:
    """Values of some fields, planned from the cases, and the plan.

    Args:
      full: complete, see `config.complete`.
      fields: that say "auto".
      folds: True plans from all cases, for a cross-validation; False from those that are trained
        on.

    Raises:
      ConfigError: a field is wrong.
      DataError, ManyErrors: cases are missing or faulty.
    """
    values = flatten(full)
    config_gate.check_fields(_nested({k: v for k, v in values.items() if k not in fields}))
    blank = filled(full, dict.fromkeys(fields))
    challenge = from_config.challenge(blank, ())
    found = _measured(blank, challenge, folds=folds)
    given = {
        line: values[field]
        for line, field in plan_record.Plan.FIELDS.items()
        if field in values and field not in fields
    }
    if given.get("epochs", 0) is None and (until := from_config.epochs_until(full)):
        given["epochs"] = until
    given = {line: value for line, value in given.items() if value is not None or line in NONE}
    network = network_of(blank, len(found.channels), found.classes)
    made = auto_plan.plan(
        found,
        network,
        budget=from_config.budget(full),
        schemes=challenge.normalisation,
        rates=from_config.rates(full),
        steps_per_epoch=from_config.steps_per_epoch(full),
        given=given,
    )
    unused = from_config.unused_by_schedule(full)
    lines = made.lines([field for field in values if field in FIELDS and field != unused])
    settings = made.settings()
    return {field: settings[field] for field in fields}, Planned(lines, found.record())


def _measured(blank: ConfigDict, challenge: Challenge, *, folds: bool) -> fingerprint.Fingerprint:
    """The fingerprint of the training cases, or of all."""
    data = from_config.data(blank, ())
    failures: list[tuple[str, str]] = []
    files = challenge.cases(data.root, labelled=True, errors=failures)
    if files and not folds:
        official = lambda: challenge.official_split(data.root)  # noqa: E731
        trained = set(splits.make(files, **data.split, official=official).train)
        files = [case for case in files if case.id in trained]
    return fingerprint.measure(
        challenge,
        files,
        folder=data.cache,
        num_threads=data.num_threads,
        num_processes=data.num_processes,
        progress=jax.process_index() == 0,
        failures=failures,
    )


def network_of(blank: ConfigDict, channels: int, classes: int) -> Network:
    """The network of a config, for a plan."""
    attributes = from_config.attributes(blank, 1)
    name = attributes.pop("name")
    for of_plan in ("depth_kernels", "depth_strides"):
        attributes.pop(of_plan, None)
    return Network(name, channels, classes, attributes)


def recorded_plan(workdir: str | os.PathLike) -> str:
    """The table of a run's plan; "" if it was not planned.

    Raises DataError if the record is damaged.
    """
    folder = run_folder.of_run(workdir)
    path = None if folder is None else folder / run_folder.PLAN
    if path is None or not os.path.lexists(path):
        return ""
    record = read_record(path, {"lines": _LIST}, remedy=_REMEDY)
    try:
        return plan_record.table(record["lines"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: its lines cannot be read ({error!r}); {_REMEDY}") from error


def filled(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A locked copy with some fields of other values, without references; dotted field -> value."""
    return ConfigDict(_nested(_flat(config.to_dict()) | dict(values))).lock()


def without_plan(config: ConfigDict) -> ConfigDict:
    """A copy without the fields that say "auto", but for a patch, the smallest that the network
    takes: for what needs the network and not the training.
    """
    values = flatten(config)
    if not (fields := asked(values)):
        return config
    rest = ConfigDict(_nested({k: v for k, v in values.items() if k not in fields}))
    if "data.patch" not in fields:
        return rest.lock()
    return filled(rest, {"data.patch": network_of(rest, 1, 2).probe()})


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Dotted field -> value."""
    return _flat(config.to_dict())


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(dict(tree), sep=".", keep_empty_nodes=True)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    return unflatten_dict(dict(values), sep=".")


def plain(value: Any) -> Any:
    """A value as a config has it: JSON has lists only."""
    return tuple(value) if isinstance(value, list) else value
