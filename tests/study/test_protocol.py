"""The protocol of a study: what a later start may change, and what it may not."""

import pytest

from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.study import grid, protocol

ARMS = {"random": {"weights.file": ""}, "mean": {"weights.inflate": "mean"}}
STARTED = ["random/n_5/seed_0"]


def study(**fields):
    return grid.read(
        {"question": "?!", "arms": ARMS, "reference": "random", "cases": (5,)} | fields
    )


def record(of=None, **fields):
    of = of or study()
    settled = {
        "numbers": [5],
        "config": {"data": {"root": "/data/x"}, "train": {"epochs": 3}},
        "planned": {arm: {"data.patch": (32, 32, 32)} for arm in of.arms},
        "budget": {arm: {"steps": 30} for arm in of.arms},
        "held_out": ["a", "b"],
        "training": {f"n_5/seed_{seed}": ["c", "d"] for seed in of.seeds},
    }
    return protocol.make(of, **settled | fields)


def test_it_is_read_as_it_was_written_and_holds_no_folder_of_this_machine(tmp_path):
    assert protocol.read(tmp_path) is None
    of = study(compare=(("mean", "random"),), common={"weights.source": "/home/me/w.safetensors"})
    protocol.write(tmp_path, record(of))
    text = (tmp_path / protocol.FILE).read_text()
    assert "/home/me" not in text and "/data/x" not in text
    found = protocol.read(tmp_path)
    again = protocol.study(found)
    assert (again.arms, again.seeds, again.cases) == (of.arms, of.seeds, of.cases)
    assert again.compare == of.compare and list(again.arms) == list(of.arms)
    assert [run.name for run in protocol.runs(found, tmp_path)] == [
        f"{arm}/n_5/seed_{seed}" for seed in (0, 1, 2) for arm in ("random", "mean")
    ]


def test_a_damaged_one_is_named(tmp_path):
    protocol.write(tmp_path, record() | {"seeds": "many"})
    with pytest.raises(DataError, match=r"protocol.json.*seeds"):
        protocol.read(tmp_path)


def test_a_changed_study_is_amended_with_all_that_was_changed():
    of = study(arms=ARMS | {"center": {}}, seeds=(0, 1), reference="mean", reach=0.8)
    old = record()
    new = protocol.amended(old, record(of), started=STARTED, done=4)
    (amendment,) = new["amendments"]
    assert amendment["runs_done"] == 4 and new["date"] == old["date"]
    assert amendment["changes"] == [
        "arm center added",
        "reference random -> mean",
        "reach 0.7 -> 0.8",
        "seeds [0, 1, 2] -> [0, 1]",
    ]
    assert new["seeds"] == [0, 1]
    again = protocol.amended(new, record(), started=STARTED, done=5)
    assert [a["runs_done"] for a in again["amendments"]] == [4, 5]
    assert again["amendments"][1]["changes"][0] == "arm center left out"


def test_the_same_study_again_changes_nothing():
    old = record()
    assert protocol.amended(old, record(), started=STARTED, done=1) == old


def test_before_the_first_run_anything_may_change():
    new = record(study(arms=ARMS | {"mean": {"weights.inflate": "center"}}), held_out=["z"])
    assert protocol.amended(record(), new, started=[], done=0) == new


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"held_out": ["a", "e"]}, "held-out cases: without b, with e besides"),
        (
            {"training": {"n_5/seed_0": ["c", "f"]}},
            "training cases of n_5/seed_0: without d, with f besides",
        ),
        ({"config": {"train": {"epochs": 4}}}, "train.epochs: 3 -> 4"),
        ({"planned": {"random": {"data.patch": [64]}}}, "arm random, data.patch"),
        ({"budget": {"random": {"steps": 31}}}, "arm random, steps: 30 -> 31"),
    ],
)
def test_what_would_make_runs_another_thing_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        protocol.amended(record(), record(**fields), started=STARTED, done=1)


def test_an_arm_may_change_only_while_it_has_no_run():
    of = study(arms=ARMS | {"mean": {"weights.inflate": "center"}})
    (amendment,) = protocol.amended(record(), record(of), started=STARTED, done=1)["amendments"]
    assert "arm mean, of which no run was begun" in amendment["changes"][0]
    with pytest.raises(ConfigError, match="arm mean, weights.inflate: 'mean' -> 'center'"):
        protocol.amended(record(), record(of), started=["mean/n_5/seed_0"], done=1)


@pytest.mark.parametrize("was, now", [(1e-2, None), (None, 1e-2), (1e-2, 1e-1)])
def test_a_field_may_not_come_to_be_set_for_all_arms_nor_cease_to_be(was, now):
    config = {"data": {"root": "/data/x"}, "optim": {"learning_rate": 1e-3}}
    old, new = (
        record(study(common={"optim.learning_rate": rate} if rate else {}), config=config)
        for rate in (was, now)
    )
    with pytest.raises(ConfigError, match=f"optim.learning_rate: {was or 0.001} -> {now or 0.001}"):
        protocol.amended(old, new, started=STARTED, done=1)


def test_where_a_field_is_set_does_not_matter_if_its_value_is_the_same():
    train = {"data": {"root": "/data/x"}, "train": {"epochs": 3}}
    old = record(study(common={"train.epochs": 5}), config=train)
    new = record(config=train | {"train": {"epochs": 5}})
    assert protocol.amended(old, new, started=STARTED, done=1)["amendments"] == []


def test_where_the_data_lie_may_change():
    moved = record(config={"data": {"root": "/mnt/y"}, "train": {"epochs": 3}})
    assert protocol.amended(record(), moved, started=STARTED, done=1)["amendments"] == []


def test_how_runs_are_scored_may_not_change():
    half, whole = (record(config={"inference": {"overlap": x}}) for x in (0.5, 0.0))
    with pytest.raises(ConfigError, match="inference.overlap: 0.5 -> 0.0"):
        protocol.amended(half, whole, started=STARTED, done=1)
    with pytest.raises(ConfigError, match="train.choose: 'last' -> 'best'"):
        best = record(study(common={"train.choose": "best"}))
        protocol.amended(record(), best, started=STARTED, done=1)
