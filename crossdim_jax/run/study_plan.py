"""Everything of a study that is settled before its first run: configs, cases, length, protocol."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from crossdim_jax import metrics
from crossdim_jax.errors import ConfigError, CrossdimError, check_name
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.run import auto_fields, cases, done, experiment, initial_state
from crossdim_jax.run import config as config_lib
from crossdim_jax.run.auto_fields import Planned
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.storage import run_folder
from crossdim_jax.study import grid, protocol
from crossdim_jax.study.grid import PlannedRun, Study

LENGTH = "train.steps_per_epoch"
DOING = "studying"  # what a process does in the folder of a run that it makes


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study that can start.

    Attributes:
      runs: in their order.
      configs: arm -> the config of its runs but for their seed and number of cases.
      defaults: the config file's values without overrides.
      protocol: of this start, not compared with an older one yet.
      planned: the plan that "auto" fields were just taken from; None if there is none.
    """

    runs: Sequence[PlannedRun]
    configs: Mapping[str, ConfigDict]
    defaults: Mapping[str, Any]
    protocol: Mapping[str, Any]
    planned: Planned | None

    def build(self, run: PlannedRun) -> Experiment:
        """The experiment of a run."""
        of_seed = ("seed", "data.split.fold", "data.cases")
        fields = {name: run.overrides[name] for name in of_seed if name in run.overrides}
        config = auto_fields.filled(self.configs[run.arm], fields)
        return experiment.build(config, run.workdir, defaults=self.defaults)


class _Problems:
    """Problems of arms, gathered; what several arms share is said once."""

    def __init__(self):
        self._arms: dict[str, list[str]] = {}

    def part[T](self, arm: str, make: Callable[..., T], *args: Any, **options: Any) -> T | None:
        """Makes something of an arm; None if it cannot be made, and its error is kept."""
        try:
            return make(*args, **options)
        except CrossdimError as error:
            self._arms.setdefault(str(error), []).append(arm)
            return None

    def refuse(self) -> None:
        """Raises ConfigError with all that was found, if anything was."""
        if self._arms:
            lines = [
                f"{'arm' if len(arms) == 1 else 'arms'} {', '.join(arms)}: "
                + text.replace("\n", "\n  ")
                for text, arms in self._arms.items()
            ]
            raise ConfigError("the study cannot start:\n  " + "\n  ".join(lines))


def make(config: ConfigDict, workdir: Path, study: Study, *, defaults: Mapping[str, Any]) -> Plan:
    """Settles all of a study, and decodes its cases; writes nothing to its folder.

    What the folder's protocol says of fields that were "auto", and of the length, is taken from it
    once a run is begun.

    Raises:
      ConfigError: arms cannot be built, each with what is wrong with it; or settings are wrong.
      DataError, ManyErrors: cases are missing or faulty.
    """
    problems, started = _Problems(), begun(workdir)
    recorded = (protocol.read(workdir) or {}) if started else {}
    arms = {arm: problems.part(arm, changed, config, study, arm) for arm in study.arms}
    problems.refuse()
    filled, planned = _planned(problems, arms, study.reference, recorded.get("planned", {}))
    problems.refuse()
    filled = _same_length(filled, study.reference, recorded, workdir, defaults)
    built = {
        arm: problems.part(arm, experiment.build, made, workdir / arm, defaults=defaults)
        for arm, made in filled.items()
    }
    for arm, made in built.items():
        if made is not None and workdir / arm not in (folder.parents[1] for folder in started):
            problems.part(arm, initial_state.load_weights, made)
    problems.refuse()
    profile = metrics.PROFILES[built[study.reference].challenge.profile]
    check_name("study.metric", study.metric, [metric.name for metric in profile.metrics])
    draws, held_out = _draws(study, filled[study.reference], workdir, defaults)
    numbers = _numbers(study, draws)
    return Plan(
        grid.runs(study, numbers, workdir),
        filled,
        defaults,
        protocol.make(
            study,
            numbers=numbers,
            config=_base(config),
            planned={arm: _auto_values(arms[arm], filled[arm]) for arm in arms},
            budget={arm: _budget(made) for arm, made in built.items()},
            held_out=held_out,
            training={f"n_{numbers[i]}/seed_{seed}": ids for (i, seed), ids in draws.items()},
        ),
        planned,
    )


def changed(config: ConfigDict, study: Study, arm: str) -> ConfigDict:
    """The config of an arm, with "auto" where it says so.

    Raises ConfigError with every field that does not exist or takes no such value.
    """
    existing, known = auto_fields.flatten(config), auto_fields.flatten(config_lib.complete(config))
    result, later, found = copy.deepcopy(config), {}, []
    for field, value in grid.changes(study, arm).items():
        if field not in known:
            section = field.rpartition(".")[0]
            beside = ", ".join(name for name in known if name.rpartition(".")[0] == section)
            found.append(f"the config has no field {field}; beside it are: {beside or 'none'}")
        elif field not in existing:
            later[field] = value
        else:
            try:
                result.update_from_flattened_dict({field: value})
            except (TypeError, ValueError) as error:
                found.append(f"{field}={value!r}: {config_lib.problem(error)}")
    if found:
        raise ConfigError("\n".join(found))
    return auto_fields.filled(result, later | {"data.cases": None})


def _planned(
    problems: _Problems,
    arms: Mapping[str, ConfigDict],
    reference: str,
    recorded: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, ConfigDict], Planned | None]:
    """The arms with a value for each field that says "auto", and the plan if one was made.

    One plan, that of the reference from all training cases, is for all arms, so that patch, batch
    and length are the same. Fields of `model` follow from the network: an arm with another one has
    a plan of these, to which the others are given.
    """
    first, shown = _fill(arms[reference], recorded.get(reference, {}))
    values = auto_fields.flatten(first)
    result = {reference: first}
    for arm, config in arms.items():
        if arm != reference:
            other = _network(config) != _network(first)
            shared = {k: v for k, v in values.items() if not (other and k.startswith("model."))}
            made = problems.part(arm, _fill, config, recorded.get(arm, {}), shared)
            result[arm] = made[0] if made else config
    return {arm: result[arm] for arm in arms}, shown


def _fill(
    config: ConfigDict, recorded: Mapping[str, Any], shared: Mapping[str, Any] | None = None
) -> tuple[ConfigDict, Planned | None]:
    """A config whose "auto" fields are filled from a record, from another's, or from a new plan."""
    known = {**(shared or {}), **{k: auto_fields.plain(v) for k, v in recorded.items()}}
    asked = auto_fields.asked(auto_fields.flatten(config))
    config = auto_fields.filled(config, {k: known[k] for k in asked if k in known})
    if not (rest := [field for field in asked if field not in known]):
        return config, None
    found, planned = auto_fields.of_data(config_lib.complete(config), rest, folds=False)
    return auto_fields.filled(config, found), planned


def _network(config: ConfigDict) -> tuple[Any, Any]:
    values = auto_fields.flatten(config)
    return values.get("model.name"), values.get("model.encoder")


def _same_length(
    arms: Mapping[str, ConfigDict],
    reference: str,
    recorded: Mapping[str, Any],
    workdir: Path,
    defaults: Mapping[str, Any],
) -> dict[str, ConfigDict]:
    """The arms with a number of steps in an epoch, whatever the number of cases.

    Unless a config says it, it is what the epochs of a training on all cases have.

    Raises ManyErrors if cases are faulty: all are decoded here.
    """
    made = experiment.build(arms[reference], workdir, defaults=defaults)
    split, training, _ = cases.prepare_cases(made)
    if not split.evaluated:
        raise ConfigError(
            "no case is held out, and nothing could be compared; set config.data.split.test, the "
            "fraction of patients that are scored in the end, or another config.data.split.kind"
        )
    known = [budget["steps_per_epoch"] for budget in recorded.get("budget", {}).values()]
    steps = known[0] if known else cases.steps_per_epoch(made, training)
    return {
        arm: config
        if auto_fields.flatten(config).get(LENGTH) is not None
        else auto_fields.filled(config, {LENGTH: steps})
        for arm, config in arms.items()
    }


def begun(workdir: Path) -> list[Path]:
    """Folders of the runs that are begun, also of those that are no longer asked for.

    One that another process is at counts, though it may have no checkpoint before its end.
    """
    return [
        folder
        for folder in sorted(workdir.glob("*/n_*/seed_*"))
        if run_folder.has_checkpoint(folder)
        or done.seconds(folder) is not None
        or run_folder.in_use(folder, DOING)
    ]


def _draws(
    study: Study, config: ConfigDict, workdir: Path, defaults: Mapping[str, Any]
) -> tuple[dict[tuple[int, int], list[str]], list[str]]:
    """Training cases by (index in `study.cases`, seed), and the held-out cases.

    Raises ConfigError if there are not so many cases, or if other cases are held out elsewhere.
    """
    draws, held_out, found = {}, {}, []
    files: list[CaseFiles] | None = None
    for seed in study.seeds:
        for index, asked in enumerate(study.cases):
            fields = {**study.of_seed(seed), "data.cases": asked}
            try:
                made = experiment.build(
                    auto_fields.filled(config, fields), workdir, defaults=defaults
                )
                files = made.cases() if files is None else files
                split = cases.make_split(made, files)
            except ConfigError as error:
                found.append(f"{asked} cases, seed {seed}: {error}")
                continue
            draws[index, seed], held_out[index, seed] = split.train, split.evaluated
    if found:
        raise ConfigError("the study cannot start:\n  " + "\n  ".join(dict.fromkeys(found)))
    first = next(iter(held_out.values()))
    if any(ids != first for ids in held_out.values()) and not study.fold_by_seed:
        raise ConfigError("other cases are held out for other seeds; set config.data.split.seed")
    return draws, sorted(set().union(*held_out.values()))


def _numbers(study: Study, draws: Mapping[tuple[int, int], Sequence[str]]) -> list[int]:
    """Numbers of training cases, by which folders are named: as asked, or as many as there are.

    Raises ConfigError if two are the same.
    """
    numbers = [
        asked if isinstance(asked, int) else max(len(draws[index, s]) for s in study.seeds)
        for index, asked in enumerate(study.cases)
    ]
    if len(set(numbers)) < len(numbers):
        raise ConfigError(
            f"study.cases={study.cases}: these are {', '.join(map(str, numbers))} cases; each "
            "number once is expected"
        )
    return numbers


def _base(config: ConfigDict) -> dict[str, Any]:
    """The config that the arms change, without what the study sets."""
    fields = config_lib.complete(config).to_dict()
    fields.pop("seed", None)
    fields["data"].pop("cases", None)
    return fields


def _auto_values(before: ConfigDict, after: ConfigDict) -> dict[str, Any]:
    """Values that fields which say "auto" before have after; plain, without sections."""
    asked, nested = auto_fields.asked(auto_fields.flatten(before)), after.to_dict()
    values = {}
    for field in asked:
        section, name = field.split(".")
        values[field] = nested[section][name]
    return values


def _budget(made: Experiment) -> dict[str, Any]:
    steps = made.training.steps_per_epoch
    return {
        "steps": steps * made.training.epochs,
        "steps_per_epoch": steps,
        "batch_size": made.training.batch_size,
        "patch": list(made.data.patch),
    }
