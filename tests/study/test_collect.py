"""Runs of a study as read from their folders: what is missing is named, what is odd refused."""

import json
import math

import numpy as np
import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.study import collect
from tests import study_folders

EFFECTS = {"random": 0.0, "center": 2.0}
STUDY = study_folders.study(EFFECTS, cases=(5,), seeds=(0, 1))


def two_runs(tmp_path, **second):
    """A run with scores of two cases and another of the same seed, changed as asked."""
    runs = study_folders.planned(tmp_path, study_folders.study(EFFECTS, cases=(5,), seeds=(0,)))
    scores = {"a": 0.5, "b": 0.7}
    study_folders.write_run(runs[0].workdir, scores)
    study_folders.write_run(runs[1].workdir, second.pop("scores", scores), **second)
    return runs


def test_scores_curves_and_costs_are_those_of_the_folder(tmp_path):
    runs = study_folders.write(tmp_path, STUDY, EFFECTS)
    results = collect.read(runs)
    assert [found.run for found in results.finished] == runs and not results.missing
    assert results.cases() == [5] and set(results.of("center", 5)) == {0, 1}
    found = results.of("center", 5)[1]
    lines = (found.run.workdir / "evaluation/cases.csv").read_text().splitlines()
    assert found.scores("dice")["case_03"] == float(lines[4].split(",")[1])
    assert found.curve("train")[0].tolist() == list(range(1, 61))
    assert found.curve("validation")[0].tolist() == [20, 40, 60]
    assert (found.steps, found.seconds, found.seconds_per_step) == (60, 120, 1.5)
    assert found.cost["parameters"] == 1234567


def test_the_score_of_a_case_is_over_the_classes_that_it_has(tmp_path):
    runs = two_runs(tmp_path)
    table = "id,dice_anterior,dice_posterior,note\na,0.5,0.7,\nb,,0.4,\n"
    (runs[0].workdir / "evaluation/cases.csv").write_text(table)
    found = collect.read(runs[:1]).finished[0]
    assert found.scores("dice") == {"a": pytest.approx(0.6), "b": 0.4}
    assert math.isnan(found.scores("dice", "anterior")["b"])
    assert all(math.isnan(v) for v in found.scores("hd95").values())


def remove(name):
    return lambda folder: (folder / name).unlink()


def damage(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (remove("metrics.jsonl"), "not trained yet"),
        (remove("evaluation/cases.csv"), "not scored yet"),
        (remove("evaluation/summary.json"), "summary.json: not found"),
        (damage("evaluation/summary.json", "{"), "summary.json: not readable JSON"),
        (damage("evaluation/cases.csv", "id,dice_anterior\na,x\n"), "no number"),
        (damage("evaluation/cases.csv", "id,dice_anterior\na,0.5\n"), "has 1 cases and"),
        (damage("run.json", '{"parameters": -1}'), "parameters"),
    ],
)
def test_a_missing_or_damaged_run_is_named_and_the_others_stay(tmp_path, change, why):
    runs = study_folders.write(tmp_path, STUDY, EFFECTS)
    change(runs[1].workdir)
    results = collect.read(runs)
    assert [found.run for found in results.finished] == [runs[0], *runs[2:]]
    [(run, reason)] = results.missing
    assert run == runs[1] and why in reason and str(tmp_path) not in reason


def test_a_run_that_was_never_started_is_named(tmp_path):
    results = collect.read(study_folders.planned(tmp_path, STUDY))
    assert {why for _, why in results.missing} == {"not started yet"} and not results.finished


def other_classes(folder):
    path = folder / "evaluation/summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"regions": ["anterior"]}))


def other_definitions(folder):
    path = folder / "evaluation/summary.json"
    definitions = {"dice": "smoothed"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"definitions": definitions}))


@pytest.mark.parametrize(
    ("second", "change", "what"),
    [
        ({"scores": {"a": 0.5, "c": 0.7}}, None, "other held-out cases (2 are in one only"),
        ({"truths": {"a": "0123", "b": "4567"}}, None, "other labels of the same cases, such as b"),
        ({}, other_classes, "other classes (anterior, posterior and anterior)"),
        ({}, other_definitions, "metrics of other definitions"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused_with_both_names(
    tmp_path, second, change, what
):
    runs = two_runs(tmp_path, **second)
    if change:
        change(runs[1].workdir)
    with pytest.raises(DataError) as error:
        collect.read(runs)
    text = str(error.value)
    assert what in text and all(str(run.workdir) in text for run in runs)


def test_seeds_may_have_held_out_cases_of_their_own(tmp_path):
    runs = study_folders.planned(tmp_path, STUDY)
    for run in runs:
        study_folders.write_run(run.workdir, {f"{run.seed}_{i}": 0.5 for i in range(3)})
    assert len(collect.read(runs).finished) == 4


def test_a_step_that_was_logged_twice_counts_once(tmp_path):
    runs = study_folders.write(tmp_path, STUDY, EFFECTS)
    with (runs[0].workdir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 30, "epoch": 1.5, "dice": 0.25}\n{"kind": "tr')
    found = collect.read(runs[:1]).finished[0]
    steps, dice = found.curve("train")
    assert len(steps) == 60 and dice[np.flatnonzero(steps == 30)] == 0.25
    assert found.notes == ["1 lines of metrics.jsonl could not be read"]
