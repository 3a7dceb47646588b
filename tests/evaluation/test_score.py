import csv
import dataclasses

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax import challenges, metrics
from crossdim_jax.challenges.base import Challenge, Table
from crossdim_jax.challenges.brats import challenge as brats
from crossdim_jax.errors import DataError, ManyErrors
from crossdim_jax.metrics import profile
from crossdim_jax.report import page, tables
from tests.evaluation.cases import (
    AFFINE,
    oracle,
    predict,
    score,
    strict_json,
)


def test_a_perfect_network_scores_perfectly_on_the_files_own_grid(challenge, files, tmp_path):
    result = predict(challenge, files, tmp_path / "predictions")
    assert not result.failed and len(result.written) == 3
    for case, path in zip(files, result.written, strict=True):
        truth, found = nib.load(case.label), nib.load(path)
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(truth.dataobj))
        np.testing.assert_array_equal(found.affine, truth.affine)
    summary = score(challenge, files, tmp_path / "predictions")
    assert summary == strict_json(tmp_path / "evaluation/summary.json")
    assert summary["n_cases"] == 3
    assert not (summary["mismatched"] or summary["failed"] or summary["missing"])
    for region in ("WT", "TC", "ET"):
        assert summary["statistics"][f"dice_{region}"]["mean"] == 1
        assert summary["statistics"][f"hd95_{region}"]["q75"] == 0
    with (tmp_path / "evaluation/cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [case.id for case in files]
    assert list(rows[0])[:2] == ["id", "dice_WT"] and float(rows[2]["sensitivity_ET"]) == 1


def test_a_prediction_slightly_elsewhere_is_scored_where_that_is_accepted(
    challenge, files, tmp_path
):
    folder = tmp_path / "predictions"
    predict(challenge, files, folder)
    path = folder / f"{files[1].id}.nii.gz"
    label = np.asarray(nib.load(path).dataobj)
    moved = AFFINE.copy()
    moved[0, 3] += 0.3
    path.unlink()
    nib.save(nib.Nifti1Image(label, moved), path)
    ((case, why),) = score(challenge, files, folder)["mismatched"]
    assert case == files[1].id and f"{path.name}: its affine puts the farthest voxel 0.3 mm" in why
    challenge.grid_tolerance_mm = 0.5
    assert score(challenge, files, folder)["mismatched"] == []


def test_a_prediction_whose_values_mean_nothing_is_named_and_not_scored(challenge, files, tmp_path):
    folder = tmp_path / "predictions"
    predict(challenge, files, folder)
    path = folder / f"{files[1].id}.nii.gz"
    image = nib.load(path)
    label = np.asarray(image.dataobj).copy()
    label.flat[0] = 3  # enhancing tumour elsewhere, nothing in this convention
    nib.save(nib.Nifti1Image(label, image.affine), path)
    summary = score(challenge, files, folder)
    ((case, why),) = summary["failed"]
    assert case == files[1].id and f"{path.name}: holds label 3 (1 voxels)" in why
    assert summary["n_cases"] == len(files) - 1


@pytest.mark.parametrize("what", ["shape", "affine"])
def test_a_prediction_on_another_grid_scores_as_a_mismatch(challenge, files, tmp_path, what):
    folder = tmp_path / "predictions"
    predict(challenge, files, folder)
    path = folder / f"{files[1].id}.nii.gz"
    label = np.asarray(nib.load(path).dataobj)
    moved = AFFINE + np.eye(4, k=3) * (what == "affine")
    path.unlink()
    nib.save(nib.Nifti1Image(label[what == "shape" :], moved), path)
    summary = score(challenge, files, folder)
    assert [case for case, _ in summary["mismatched"]] == [files[1].id]
    assert summary["statistics"]["dice_WT"]["mean"] == pytest.approx(2 / 3)
    assert summary["statistics"]["hd95_ET"]["mean"] == pytest.approx(374 / 3)
    table = (tmp_path / "evaluation/table.md").read_text()
    assert "mismatch" in table and what in table and files[1].id in table
    with (tmp_path / "evaluation/cases.csv").open() as file:
        assert what in list(csv.DictReader(file))[1]["note"]


def test_missing_and_damaged_predictions_are_named_and_not_scored(challenge, files, tmp_path):
    folder = tmp_path / "predictions"
    predict(challenge, files[:2], folder)
    (folder / f"{files[1].id}.nii.gz").write_bytes(b"nonsense")
    summary = score(challenge, files, folder)
    assert summary["n_cases"] == 1
    assert summary["missing"][0][0] == files[2].id
    assert summary["failed"][0][0] == files[1].id and "DataError" in summary["failed"][0][1]
    assert summary["statistics"]["dice_WT"]["sd"] is None  # one case has none
    assert strict_json(tmp_path / "evaluation/summary.json") == summary
    assert f"- {files[2].id}: " in (tmp_path / "evaluation/table.md").read_text()


def test_nothing_to_evaluate_is_an_error(challenge, files, tmp_path):
    with pytest.raises(DataError, match="predict them first"):
        score(challenge, files, tmp_path / "predictions")
    unlabelled = [dataclasses.replace(case, label=None) for case in files]
    predict(challenge, files, tmp_path / "predictions")
    with pytest.raises(ManyErrors, match="no label"):
        score(challenge, unlabelled, tmp_path / "predictions")


def test_the_table_states_the_aggregation(files, tmp_path):
    challenge = challenges.get("brats", layout="2021", aggregate="synapse2022", et_min_mm3=0.0)
    predict(challenge, files, tmp_path / "predictions")
    assert score(challenge, files, tmp_path / "predictions")["aggregation"] == "synapse2022"
    table = (tmp_path / "evaluation/table.md").read_text()
    assert "Aggregation: synapse2022" in table and "373.128664" in table and "Cases: 3" in table


def test_what_fails_to_be_predicted_again_is_not_scored_by_its_old_prediction(
    challenge, files, tmp_path
):
    folder = tmp_path / "predictions"
    predict(challenge, files, folder)
    calls = []

    def fails_once(image):
        calls.append(image)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return oracle(image)

    result = predict(challenge, files, folder, fails_once, overwrite=True)
    assert not (folder / f"{files[0].id}.nii.gz").exists()
    summary = score(challenge, files, folder, failed=result.failed)
    assert summary["n_cases"] == 2 and not summary["missing"]
    assert summary["failed"] == [[files[0].id, "RuntimeError: out of memory"]]
    assert "RuntimeError: out of memory" in (tmp_path / "evaluation/table.md").read_text()


def test_a_failed_case_is_not_scored_whatever_file_is_there(challenge, files, tmp_path):
    predict(challenge, files, tmp_path / "predictions")
    failed = [(files[0].id, "cannot be read")]
    assert score(challenge, files, tmp_path / "predictions", failed=failed)["n_cases"] == 2


def test_why_nothing_could_be_predicted_is_what_is_raised(challenge, files, tmp_path):
    def fails(image):
        raise RuntimeError("out of memory")

    result = predict(challenge, files, tmp_path / "predictions", fails)
    with pytest.raises(ManyErrors, match="out of memory") as caught:
        score(challenge, files, tmp_path / "predictions", failed=result.failed)
    assert len(caught.value.failures) == 3 and "predict them first" not in str(caught.value)


def test_where_the_numbers_come_from_is_recorded_and_printed(challenge, files, tmp_path):
    predict(challenge, files, tmp_path / "predictions")
    provenance = {"checkpoint_step": np.int64(120), "flips": (0, 1), "overlap": 0.5}
    summary = score(challenge, files, tmp_path / "predictions", provenance=provenance)
    expected = {"checkpoint_step": 120, "flips": [0, 1], "overlap": 0.5}
    assert summary["provenance"] == expected
    assert strict_json(tmp_path / "evaluation/summary.json")["provenance"] == expected
    table = (tmp_path / "evaluation/table.md").read_text()
    assert "- Checkpoint step: 120\n- Flips: [0, 1]\n- Overlap: 0.5\n" in table


def test_the_challenge_says_what_it_scores_by(challenge, files, tmp_path, monkeypatch):
    assert {"profile", "aggregate"} <= set(Challenge.__annotations__)
    predict(challenge, files, tmp_path / "predictions")
    other = dataclasses.replace(metrics.PROFILES["brats2022"], name="other")
    monkeypatch.setitem(metrics.PROFILES, "other", other)
    monkeypatch.setattr(challenge, "profile", "other")
    assert score(challenge, files, tmp_path / "predictions")["profile"] == "other"
    assert brats.BraTS.profile == "brats2022"  # not by default: the class says so


def test_a_metric_is_added_to_every_challenge_by_one_row(challenge, files, tmp_path, monkeypatch):
    """Scored, averaged, and printed with its heading, unit, factor and definition."""
    row = metrics.Metric(
        "share",
        lambda pair: pair.prediction.mean(),
        "Predicted share",
        "voxels predicted / all voxels",
        unit="per mille",
        factor=1000.0,
    )
    monkeypatch.setattr(profile, "COMMON", (row,))
    predict(challenge, files, tmp_path / "predictions")
    summary = score(challenge, files, tmp_path / "predictions")
    masks = [challenge.masks(challenge.load(case).label) for case in files]
    mean = np.mean([mask[..., 0].mean() for mask in masks])
    assert summary["statistics"]["share_WT"]["mean"] == pytest.approx(mean)
    assert summary["definitions"]["share"] == "voxels predicted / all voxels"
    assert "share_ET" in (tmp_path / "evaluation/cases.csv").read_text().splitlines()[0]
    for text in (
        (tmp_path / "evaluation/table.md").read_text(),
        page.write(tmp_path, challenge, files).read_text(),
    ):
        assert "Predicted share (per mille)" in text and "voxels predicted / all voxels" in text
        assert f"{1000 * mean:.2f}" in text


class Grouped(brats.BraTS):
    """With groups, a table over all cases and formats of its own."""

    def groups(self, files):
        return ("odd",) if int(files.id[-1]) % 2 else ("even", "zero")[: 1 + (files.id[-1] == "0")]

    def tables(self, evaluated):
        rows = tuple((e.files.id, e.row["dice_WT"], None, float("nan")) for e in evaluated)
        hidden = Table("hidden", "Hidden", ("a",), (("only a | file",),), shown=False)
        return [
            Table("whole", "Whole | tumours", ("Case", "Dice", "x", "y"), rows, ("Why.",)),
            hidden,
        ]

    def export(self, folder, files, label, geometry):
        (folder / f"{files.id}.txt").write_text(str(label.sum()))
        return [folder / f"{files.id}.txt"]

    def export_all(self, folder, predicted):
        (folder / "all.txt").write_text(",".join(case.id for case, _ in predicted))
        return [folder / "all.txt"]


def test_groups_and_tables_of_the_challenge_stand_beside_the_scores(files, tmp_path):
    challenge = Grouped(layout="2021", et_min_mm3=0.0)
    predict(challenge, files, tmp_path / "p")
    assert not list((tmp_path / "p").glob("*.txt"))
    summary = score(challenge, files, tmp_path / "p")
    counts = {name: group["n_cases"] for name, group in summary["groups"].items()}
    assert counts == {"even": 2, "zero": 1, "odd": 1}
    assert summary["groups"]["zero"]["statistics"]["dice_WT"]["n"] == 1
    with (tmp_path / "evaluation/whole.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["Case", "Dice", "x", "y"] and rows[1] == [files[0].id, "1", "", ""]
    assert "only a | file" in (tmp_path / "evaluation/hidden.csv").read_text()
    text = (tmp_path / "evaluation/table.md").read_text()
    assert "## Whole \\| tumours" in text and "- Why." in text and "## odd: 1 cases" in text
    assert "only a" not in text
    for shown in (tables.plain(summary["tables"][0])[1], [files[0].id, "1", "–", "–"]):
        assert "| " + " | ".join(shown) + " |" in text


def test_further_formats_are_written_for_new_cases(files, tmp_path):
    challenge, folder = Grouped(layout="2021"), tmp_path / "p"
    files[1].images[0].write_bytes(b"")
    result = predict(challenge, files, folder, export=True)
    assert [name for name, _ in result.failed] == [files[1].id]
    assert sorted(path.stem for path in folder.glob("*.txt")) == [
        "BraTS2021_00000",
        "BraTS2021_00002",
        "all",
    ]
    assert (folder / "all.txt").read_text() == f"{files[0].id},{files[2].id}"


def test_cases_of_one_name_can_be_told_apart(challenge, files, tmp_path):
    """By their labels: for whoever compares two evaluations."""
    predict(challenge, files, tmp_path / "predictions")
    truths = score(challenge, files, tmp_path / "predictions")["truths"]
    assert truths.keys() == {case.id for case in files} and len(set(truths.values())) > 1
    assert score(challenge, files, tmp_path / "predictions")["truths"] == truths
    other = dataclasses.replace(files[0], label=files[1].label)
    again = score(challenge, [other], tmp_path / "predictions")["truths"]
    assert again == {files[0].id: truths[files[1].id]}
