"""Fields of a study's arms that say "auto": planned once, and the same in every arm."""

import json

import pytest

from configs import dataset_dxnet
from crossdim_jax.run import auto_fields, study_plan
from crossdim_jax.study import grid

ARMS = {
    "plain": {},
    "slow": {"optim.rates": (("encoder/.*", 0.1),)},
    "group": {"model.norm": "group"},
    "other": {"model.encoder": "resnet18"},
    "patch": {"data.patch": (32, 32, 32)},
}


@pytest.fixture
def planned(monkeypatch):
    """The fields of each plan that was made; a plan's values name the plan and the field."""
    plans = []

    def of_data(full, fields, *, folds):
        assert not folds and full.data.cases is None  # from all training cases
        plans.append(list(fields))
        return {field: f"plan {len(plans)}: {field}" for field in fields}, None

    monkeypatch.setattr(study_plan.auto_fields, "of_data", of_data)
    return plans


def fill(recorded):
    study = grid.read({"question": "?!", "arms": ARMS, "reference": "plain"})
    config = dataset_dxnet.get_config()
    arms = {arm: study_plan.changed(config, study, arm) for arm in ARMS}
    problems = study_plan._Problems()
    filled, _ = study_plan._planned(problems, arms, study.reference, recorded)
    problems.refuse()
    values = {arm: study_plan._auto_values(arms[arm], filled[arm]) for arm in ARMS}
    return {arm: auto_fields.flatten(made) for arm, made in filled.items()}, values


def test_one_plan_is_for_all_arms_and_another_network_gets_what_is_of_the_network(planned):
    filled, _ = fill({})
    assert len(planned) == 2 and planned[1] == ["model.depth_kernels", "model.depth_strides"]
    plain = filled["plain"]
    assert not auto_fields.asked(plain) and plain["data.patch"] == "plan 1: data.patch"
    own = {arm: {k: v for k, v in filled[arm].items() if v != plain[k]} for arm in ARMS}
    depth = {field: f"plan 2: {field}" for field in planned[1]}
    assert own == {
        "plain": {},
        "slow": {"optim.rates": (("encoder/.*", 0.1),)},
        "group": {"model.norm": "group"},
        "other": {"model.encoder": "resnet18", **depth},
        "patch": {"data.patch": (32, 32, 32)},
    }


def test_a_later_start_takes_the_plan_that_was_recorded(planned):
    filled, values = fill({})
    again, _ = fill(json.loads(json.dumps(values)))
    assert again == filled and len(planned) == 2
    assert "data.patch" in values["slow"] and "data.patch" not in values["patch"]
