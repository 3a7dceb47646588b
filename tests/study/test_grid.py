"""The grid of a study: what a study file says, its runs in their order, and parts of them."""

import itertools
from pathlib import Path

import pytest

from configs.studies import common, encoder, norms, transfer
from crossdim_jax.errors import ConfigError
from crossdim_jax.study import grid

ARMS = {"random": {"weights": {"file": ""}}, "mean": {"weights.inflate": "mean"}}
FIELDS = {"question": "Does it?", "arms": ARMS, "reference": "random"}


def study(**fields):
    return grid.read(FIELDS | fields)


@pytest.mark.parametrize("module", [transfer, encoder, norms])
def test_the_studies_that_come_with_it_are_read(module):
    read = grid.read(module.get_config().to_dict())
    assert read.reference in read.arms and read.seeds == (0, 1, 2)


def test_changes_are_dotted_fields_or_sections_and_arms_keep_their_order():
    assert study().arms == {"random": {"weights.file": ""}, "mean": {"weights.inflate": "mean"}}
    given = common.get_config()
    given.arms = common.arms({"z": {"optim.rates": (("a/.*", 0.1),)}, "a": {}})
    given.question, given.reference = "Does it?", "a"
    read = grid.read(given.to_dict())
    assert list(read.arms.items()) == [("z", {"optim.rates": (("a/.*", 0.1),)}), ("a", {})]


def test_axes_make_an_arm_of_each_choice_with_each_and_the_last_has_the_last_word():
    axes = {
        "norm": {"group": {"model.norm": "group", "weights.file": "x"}, "own": {}},
        "start": {"random": {"weights.file": ""}, "mean": {"weights.inflate": "mean"}},
    }
    read = study(axes=axes, arms={"none": {}}, reference="none")
    assert list(read.arms) == ["group-random", "group-mean", "own-random", "own-mean", "none"]
    assert read.arms["group-random"] == {"model.norm": "group", "weights.file": ""}
    assert read.arms["group-mean"]["weights.file"] == "x"


def test_runs_come_seed_by_seed_in_whole_pairs():
    read = study(seeds=(3, 1), cases=(5, None), common={"train.epochs": 2, "train.keep": 3})
    planned = grid.runs(read, [5, 9], Path("runs/study"))
    assert [run.name for run in planned] == [
        f"{arm}/n_{n}/seed_{seed}" for seed in (3, 1) for n in (5, 9) for arm in ("random", "mean")
    ]
    last = planned[-1]
    assert last.workdir == Path("runs/study/mean/n_9/seed_1") and last.cases == 9
    set_by_the_study = {"train.epochs": 2, "train.keep": 3, "weights.inflate": "mean"}
    own = {"seed": 1, "data.cases": None}
    assert last.overrides == grid.ENFORCED | set_by_the_study | own


@pytest.mark.parametrize("arms, seeds, count", [(2, 2, 1), (2, 2, 3), (3, 4, 5), (2, 1, 4)])
def test_parts_make_each_run_exactly_once_and_are_of_one_size(arms, seeds, count):
    read = study(arms={f"a{i}": {} for i in range(arms)}, reference="a0", seeds=tuple(range(seeds)))
    planned = grid.runs(read, [5], Path("s"))
    parts = [grid.part(planned, f"{i}/{count}") for i in range(count)]
    assert list(itertools.chain(*parts)) == planned == grid.part(planned, "")
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["4/4", "1", "-1/2", "a/b", "0/0"])
def test_no_other_part_is_taken(text):
    with pytest.raises(ConfigError, match=r"study_part=.*: expected I/N with I from 0 to N-1"):
        grid.part([], text)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"question": " "}, "study.question is empty"),
        ({"arms": {"random": {}}}, "1 found; expected two or more"),
        ({"arms": ARMS | {"../up": {}}}, "'../up' names a folder"),
        ({"arms": ARMS | {"figures": {}}}, "'figures' names a folder"),
        ({"reference": "men"}, "study.reference='men': expected one of the arms, random, mean"),
        ({"compare": (("mean", "mean"),)}, r"\('mean', 'mean'\) found; expected pairs"),
        ({"compare": (("mean", "nobody"),)}, "expected pairs of two of the arms"),
        ({"cases": (0,)}, "study.cases: 0 found"),
        ({"cases": (1.5,)}, "study.cases: 1.5 found"),
        ({"cases": (5, True)}, "study.cases: True found"),
        ({"cases": (5, 5)}, "each once is expected"),
        ({"seeds": ()}, "study.seeds is empty"),
        ({"seeds": (0, -1)}, "study.seeds: -1 found"),
        ({"seeds": ("a",)}, "study.seeds: 'a' found"),
        ({"reach": 80}, "study.reach=80"),
        ({"metric": 3}, "study.metric=3"),
        ({"colour": "red"}, "study.colour: unknown; known: question"),
        ({"common": {"seed": 1}}, "common: seed is set by study.seeds"),
        ({"arms": ARMS | {"few": {"data.cases": 5}}}, "few: data.cases is set by study.seeds"),
        ({"arms": ARMS | {"x": {"data.split.test": 0.5}}}, "data.split.test must be the same"),
        ({"arms": ["a", "b"]}, "the study cannot be read"),
    ],
)
def test_what_is_wrong_with_a_study_is_said(fields, message):
    with pytest.raises(ConfigError, match=message):
        study(**fields)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError, match="3 fields are wrong") as caught:
        study(question="", seeds=(), reach=7)
    assert all(name in str(caught.value) for name in ("question", "seeds", "reach"))
