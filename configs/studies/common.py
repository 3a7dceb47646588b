"""Common part of all studies: every field, with its default and its meaning.

A change is a field of the config and its value, `changes({"weights.inflate": "mean"})`, so that
--study.arms.ARM.weights.inflate=center changes it on the command line.
"""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """A study without question and arms; `arg` is not used."""
    del arg
    study = ConfigDict(sort_keys=False)
    study.question = ""  # in a sentence
    study.arms = ConfigDict(sort_keys=False)  # name -> changes
    # {axis: {name: changes}}: arms "first-second" of each name on one axis with each on the others;
    # beside those of `arms`. Of a field that several axes set, the last one counts.
    study.axes = ConfigDict(sort_keys=False)
    study.reference = ""  # the arm that all others are compared with
    study.compare = ()  # pairs of arms that are compared besides: (("center", "shuffled"),)
    # Numbers such as 20, or fractions such as 0.25, of the training cases, the fewer among the
    # more; (): all. A seed draws the same cases in every arm.
    study.cases = ()
    study.seeds = (0, 1, 2)  # of draws of cases, initial values, order and crops
    # True: seed S holds out fold S of data.split (kind kfold or official), so that few cases are
    # all held out once; seeds are then 0 to folds - 1.
    study.fold_by_seed = False
    study.metric = "dice"  # that is compared: the name of one that every case is scored by
    study.reach = 0.7  # training Dice whose first step is reported
    # Changes in all arms. A study sets train.choose="last", train.checkpoint_every_steps=0,
    # train.keep=1 and train.keep_state=False unless these say otherwise.
    study.common = ConfigDict()
    return study


def changes(fields: Mapping[str, Any]) -> ConfigDict:
    """Fields of a config with their values, as sections.

    fields: dotted field -> value.
    """
    return ConfigDict(unflatten_dict(dict(fields), sep="."))


def arms(named: Mapping[str, Mapping[str, Any]]) -> ConfigDict:
    """Arms of a study: name -> {dotted field: value}."""
    result = ConfigDict(sort_keys=False)  # in tables and figures they stand in this order
    result.update({name: changes(fields) for name, fields in named.items()})
    return result
