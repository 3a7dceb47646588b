"""Answer and page of a study: sentences follow from the intervals, numbers from the folders."""

import csv
import dataclasses
import json
import shutil
from html.parser import HTMLParser

import pytest

from crossdim_jax.errors import ConfigError
from crossdim_jax.study import analysis, collect, page
from tests import study_folders

EFFECTS = {"random": 0.0, "center": 6.0, "repeat": 0.0, "worse": -6.0}
STUDY = study_folders.study(EFFECTS, compare=(("center", "repeat"),))
PROTOCOL = study_folders.protocol(STUDY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Study with one run that was never started and one that was not scored."""
    folder = tmp_path_factory.mktemp("study")
    study_folders.write(folder, STUDY, EFFECTS)
    shutil.rmtree(folder / "repeat/n_20/seed_2")
    shutil.rmtree(folder / "worse/n_5/seed_0/evaluation")
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return collect.read(study_folders.planned(folder, STUDY))


@pytest.fixture(scope="module")
def found(results):
    return analysis.analyse(STUDY, results)


@pytest.fixture(scope="module")
def written(folder, results):
    """Text of the page."""
    return page.write(folder, STUDY, PROTOCOL, results).read_text()


def comparison(found, arm, against, cases):
    return next(
        c for c in found.comparisons if (c.arm, c.against, c.cases) == (arm, against, cases)
    )


def test_each_arm_is_compared_with_the_reference_and_each_pair_asked_for(found):
    pairs = {(c.arm, c.against) for c in found.comparisons}
    assert pairs == {*((arm, "random") for arm in ("center", "repeat", "worse")),
                     ("center", "repeat")}  # fmt: skip
    assert {c.cases for c in found.comparisons} == {5, 20} and len(found.comparisons) == 8
    center = comparison(found, "center", "random", 20)
    assert (center.difference.pairs, center.difference.seeds) == (36, 3)
    low, high = center.difference.low, center.difference.high
    assert low < 6 < high and center.starred
    means = {a.name: a.mean for a in found.arms if a.cases == 20}
    assert center.difference.mean == pytest.approx(means["center"] - means["random"])
    assert center.by_class["anterior"].mean == pytest.approx(center.difference.mean)


def test_a_comparison_of_two_seeds_is_never_starred(found):
    worse = comparison(found, "worse", "random", 5)
    assert worse.difference.seeds == 2 and worse.difference.few and not worse.starred
    assert not dataclasses.replace(worse, p_holm=1e-9).starred


def test_the_answer_follows_from_the_intervals(found):
    said = dict(zip(((c.arm, c.cases) for c in found.comparisons), found.sentences(), strict=False))
    center = comparison(found, "center", "random", 20).difference
    assert said["worse", 20].startswith("With 20 training cases worse is worse than random by ")
    sentences = " ".join(found.sentences())
    assert (
        f"With 20 training cases center is better than random by {center.mean:.1f} points of Dice "
        f"(95 % interval {center.low:.1f} to {center.high:.1f}; 12 cases x 3 seeds)." in sentences
    )
    repeat = comparison(found, "repeat", "random", 5).difference
    assert repeat.low < 0 < repeat.high
    assert "no difference between repeat and random is shown" in said["repeat", 5]
    assert "too few to conclude anything from" in said["worse", 5]
    assert found.sentences()[-1].startswith("8 comparisons were made, and each interval is for one")


@pytest.mark.parametrize(("value", "text"), [(0.61, "+0.7"), (0.7, "+0.7"), (0.0312, "+0.04")])
def test_what_an_interval_excludes_is_rounded_outward(found, value, text):
    repeat = comparison(found, "repeat", "random", 5)
    difference = dataclasses.replace(repeat.difference, low=-0.511, high=value)
    made = dataclasses.replace(
        found, comparisons=(dataclasses.replace(repeat, difference=difference),)
    )
    said = (
        f"Differences below \u22120.6 and above {text} points are excluded, those between are not."
    )
    assert made.sentences()[0].endswith(said)


def test_a_difference_that_does_not_survive_the_correction_is_said_to(found):
    center = comparison(found, "center", "random", 20)
    weaker = dataclasses.replace(center, p_holm=0.2)
    for one, end in (
        (center, "seeds)."),
        (weaker, "not after the correction for all comparisons."),
    ):
        (said, _) = dataclasses.replace(found, comparisons=(one,)).sentences()
        assert said.endswith(end)


def test_a_metric_without_scores_is_refused(results):
    with pytest.raises(ConfigError, match=r"study\.metric='nsd' is unknown; known: dice"):
        analysis.analyse(study_folders.study(EFFECTS, metric="nsd"), results)


class Outline(HTMLParser):
    """Headings, and everything that a page would load."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.headings, self.tag = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        loads = [v for k, v in attrs if k in ("src", "href")]
        self.loads += [*loads, *([tag] if tag in ("script", "link") else [])]

    def handle_data(self, data):
        self.headings += [data] if self.tag == "h2" and data.strip() else []


def test_the_page_is_whole_and_loads_nothing(written):
    outline = Outline(written)
    assert outline.headings == [
        "Answer", "Differences", "Scores", "Learning", "Classes", "Cases", "Protocol", "Cost",
        "Methods",
    ]  # fmt: skip
    assert len(outline.loads) == 4
    assert all(source.startswith("data:image/png;base64,") for source in outline.loads)
    assert "This part could not be made" not in written
    assert STUDY.question in written


def test_missing_runs_are_named_with_the_reason(written, folder):
    assert "2 of 24 runs are missing" in written
    assert "repeat, 20 cases, seed 2: not started yet" in written
    assert "worse, 5 cases, seed 0: not scored yet" in written
    assert str(folder.parent) not in written


def test_the_page_says_what_was_changed_after_the_first_run(folder, results, written):
    assert "Nothing was changed after the first run" in written
    change = {"date": "2026-02-03", "runs_done": 7, "changes": ["seeds [0] -> [0, 1]"]}
    changed = study_folders.protocol(STUDY, amendments=[change])
    text = page._Page(folder, STUDY, changed, results).protocol_section()
    assert "2026-02-03, after 7 runs: seeds [0] -&gt; [0, 1]" in text


def test_runs_of_another_length_than_planned_are_named(folder, results):
    budget = {arm: {"steps": 60 + (arm == "center")} for arm in STUDY.arms}
    notes = page._Page(
        folder, STUDY, study_folders.protocol(STUDY, budget=budget), results
    )._notes()
    assert "center, 5 cases, seed 0: 60 of 61 steps are logged" in notes
    assert len([note for note in notes if "steps are logged" in note]) == 6


def test_all_numbers_are_in_the_files_too(folder, found, written):
    record = json.loads((folder / "study.json").read_text())
    assert record["question"] == STUDY.question
    assert record["answer"] == found.sentences()
    expected = comparison(found, "center", "repeat", 5)
    entry = next(
        c for c in record["comparisons"] if (c["arm"], c["against"]) == ("center", "repeat")
    )
    assert entry["difference"]["low"] == expected.difference.low
    assert entry["p_holm"] == expected.p_holm and entry["starred"] == expected.starred
    assert len(record["runs"]) == 22 and len(record["missing"]) == 2
    rows = list(csv.DictReader((folder / "study.csv").read_text().splitlines()))
    key = {"table": "difference", "arm": "center", "against": "repeat", "cases": "5", "seed": "",
           "class": "", "quantity": "mean"}  # fmt: skip
    [row] = [r for r in rows if r | key == r]
    assert float(row["value"]) == pytest.approx(expected.difference.mean)


def test_a_page_is_written_before_any_run_is_finished(tmp_path):
    results = collect.read(study_folders.planned(tmp_path, STUDY))
    text = page.write(tmp_path, STUDY, PROTOCOL, results).read_text()
    assert "No two runs can be compared yet" in text and "This part could not be made" not in text


def test_one_seed_and_one_case_make_a_page_without_intervals(tmp_path):
    made = study_folders.study({"random": 0, "center": 1}, cases=(5,), seeds=(0,))
    runs = study_folders.write(tmp_path, made, {"random": 0, "center": 1}, held_out=1)
    text = page.write(tmp_path, made, {}, collect.read(runs)).read_text()
    assert "This part could not be made" not in text and "nan" not in text.lower().split("<img")[0]
    assert json.loads((tmp_path / "study.json").read_text())["comparisons"][0]["p_holm"] is None
