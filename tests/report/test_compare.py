"""Runs side by side: every number in its column, what is missing a dash, what misleads said."""

import csv
import json

import pytest

from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.report import compare


def write_run(folder, name, dice, *, n_cases=4, definitions=None, config=None, **scores):
    """What the comparison reads of a run folder."""
    statistics = {
        "mean": dice, "median": dice + 0.01, "q25": dice - 0.1, "q75": dice + 0.1, "n": n_cases,
    }  # fmt: skip
    summary = {
        "challenge": "brats",
        "regions": ["WT", "TC"],
        "definitions": definitions or {"dice": "2 |A and B| / (|A| + |B|)"},
        "aggregation": "clean",
        "n_cases": n_cases,
        "statistics": {"dice_WT": statistics},
        "provenance": {"checkpoint_step": 12, "window_overlap": 0.5, "patch": [97, 64, 64]},
        "truths": {"a": "0123", "b": "4567"},
    } | scores
    metrics = [
        {"kind": "train", "step": s, "epoch": s / 4, "images_per_s": v, "seconds": 90.0}
        for s, v in ((4, 0.1), (8, 0.5), (12, 0.5))
    ]
    files = {
        "config.json": {
            "model": {"name": name, "variant": "paper", "encoder": "efficientnet_b0"},
            "data": {"patch": [97, 64, 64]},
            "train": {"batch_size": 2, "accumulate": 1},
        }
        | (config or {}),
        "evaluation/summary.json": summary,
        "run.json": {
            "parameters": 7226914,
            "peak_memory_mb": 2345.6,
            "device": "cpu",
            "devices": 4,
        },
    }
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


def table(folder):
    """Rows of the Markdown by their first cell; of several the last."""
    lines = (folder / compare.TABLE).read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def notes(*runs):
    compare.write(runs)
    text = (runs[0].parent / compare.TABLE).read_text()
    return [line for line in text.splitlines() if line.startswith("- ")]


def test_two_runs_stand_in_one_table(tmp_path):
    runs = [write_run(tmp_path / "ds", "dsnet", 0.9), write_run(tmp_path / "dx", "dxnet", 0.8)]
    page = compare.write(runs, tmp_path / "out")
    assert page == tmp_path / "out" / "comparison.html"
    found = table(tmp_path / "out")
    assert found["Network"] == [f"{n} paper efficientnet_b0" for n in ("dsnet", "dxnet")]
    assert found["Parameters"] == ["7,226,914"] * 2
    assert found["Training time per image (s, median)"] == ["2", "2"]
    assert found["Peak memory (MB)"] == ["2,346"] * 2
    assert found["Steps"] == ["12"] * 2 and found["Batch"] == ["2"] * 2
    assert found["Devices"] == ["4 x cpu"] * 2 and found["Window overlap"] == ["0.5"] * 2
    assert found["WT, mean"] == ["90.00", "80.00"]
    assert found["WT, median"] == ["91.00", "81.00"]
    assert found["WT, 25th percentile"] == ["80.00", "70.00"]
    assert found["TC, mean"] == ["–", "–"]
    html, text = page.read_text(), (tmp_path / "out" / compare.TABLE).read_text()
    for cell in ("ds and dx", "90.00", "70.00", "7,226,914"):
        assert cell in html
    assert "| WT, mean | 90.00 | 80.00 |" in text
    assert "do not compare" not in text and "differ by that" not in text


def test_the_csv_has_every_number_as_it_is(tmp_path):
    runs = [write_run(tmp_path / "ds", "dsnet", 0.9), write_run(tmp_path / "dx", "dxnet", 0.8)]
    compare.write(runs)
    with (tmp_path / compare.CSV).open(newline="") as file:
        rows = {tuple(row.values())[:4]: row["value"] for row in csv.DictReader(file)}
    assert float(rows["dx", "dice", "WT", "mean"]) == 0.8
    assert float(rows["ds", "dice", "WT", "median"]) == 0.9 + 0.01
    assert rows["ds", "parameters", "", ""] == "7226914"
    assert float(rows["ds", "seconds_per_image", "", ""]) == 2.0
    assert rows["dx", "window_overlap", "", ""] == "0.5"
    assert len(rows) == (tmp_path / compare.CSV).read_text().count("\n") - 1  # no key comes twice


def test_what_makes_scores_differ_is_said(tmp_path):
    run = write_run(tmp_path / "a", "dsnet", 0.9)
    other = write_run(tmp_path / "b", "dxnet", 0.8, truths={"a": "0123", "b": "other"})
    assert "labels or sizes, such as b: the columns do not compare" in notes(run, other)[1]
    way = {"checkpoint_step": 9, "window_overlap": 0.25, "patch": [32] * 3, "new_field": 1}
    other = write_run(tmp_path / "b", "dxnet", 0.8, provenance=way, failed=[["c", "unreadable"]])
    assert [note[:60] for note in notes(run, other)[1:]] == [
        "- Predictions were made with different window overlap: score",
        "- b: 1 of the cases not scored, because of an error.",
    ]


def test_what_makes_costs_differ_is_said(tmp_path):
    config = {"model": {"name": "dxnet", "dtype": "bfloat16"}, "data": {"patch": [97, 64, 64]}}
    config["train"] = {"batch_size": 8, "accumulate": 2}
    other = write_run(tmp_path / "b", "dxnet", 0.8, config=config)
    found = notes(write_run(tmp_path / "a", "dsnet", 0.9), other)[1:]
    assert found == [
        "- The trainings had different batch, compute type: time and memory differ by that too."
    ]
    assert table(tmp_path)["Batch"] == ["2", "8 in 2 parts"]


def test_a_cross_validation_is_one_run(tmp_path):
    whole = write_run(tmp_path / "cv", "dsnet", 0.9)
    for name in ("run.json", "metrics.jsonl"):
        (whole / name).unlink()
    for fold in range(3):
        write_run(whole / f"fold_{fold}", "dsnet", 0.1)
    summary = json.loads((whole / "evaluation/summary.json").read_text())
    summary["provenance"] = {"cross_validation": "3 folds", "window_overlap": 0.5}
    (whole / "evaluation/summary.json").write_text(json.dumps(summary))
    assert len(notes(whole, write_run(tmp_path / "dx", "dxnet", 0.8))) == 1  # nothing differs
    found = table(tmp_path)
    assert found["Trainings (folds)"] == ["3", "1"]
    assert found["Steps"] == ["36", "12"] and found["Training time"] == ["4 min 30 s", "1 min 30 s"]
    assert found["Parameters"] == ["7,226,914"] * 2 and found["WT, mean"] == ["90.00", "80.00"]


def test_what_cannot_be_compared_is_said(tmp_path):
    runs = [
        write_run(tmp_path / "a", "dsnet", 0.9),
        write_run(tmp_path / "b", "dxnet", 0.8, n_cases=5, definitions={"dice": "another"}),
        write_run(tmp_path / "c" / "a", "dxnet", 0.7),
    ]
    (runs[2] / "evaluation" / "summary.json").unlink()
    (runs[2] / "run.json").unlink()
    compare.write(runs)
    text = (tmp_path / compare.TABLE).read_text()
    for what in ("different definitions", "different numbers of cases", "not been evaluated yet"):
        assert what in text
    assert "aggregated differently" not in text  # of a run without scores nothing is known
    found = table(tmp_path)
    assert found["Dice (%)"] == ["a", "b", "c/a"]  # two are called the same
    assert found["WT, mean"][2] == found["Parameters"][2] == "–"


@pytest.mark.parametrize(
    "name", ["config.json", "run.json", "metrics.jsonl", "evaluation/summary.json", "cases.csv"]
)
def test_a_damaged_part_of_one_run_is_named_and_the_rest_stands(tmp_path, name):
    runs = [write_run(tmp_path / n, "dsnet", 0.9) for n in ("a", "b")]
    path = runs[1] / (f"evaluation/{name}" if name == "cases.csv" else name)
    path.unlink(missing_ok=True)
    if name == "metrics.jsonl":
        path.mkdir()
    else:
        path.write_text("[1]")
    said = [note for note in notes(*runs) if path.name in note]
    assert len(said) == 1 and said[0].startswith(f"- b: {path.relative_to(runs[1])}: ")
    assert str(tmp_path) not in "".join(said)
    found = table(tmp_path)
    assert found["Network"][0] and found["WT, mean"][0] == "90.00"


def test_one_folder_or_none_of_a_run_is_refused(tmp_path):
    run = write_run(tmp_path / "a", "dsnet", 0.9)
    for one in ([run], [run, tmp_path / "." / "a"]):
        with pytest.raises(ConfigError, match="two run folders"):
            compare.write(one)
    with pytest.raises(DataError, match="config.json: not found"):
        compare.write([run, tmp_path / "nothing"])
