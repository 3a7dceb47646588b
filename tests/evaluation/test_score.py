import csv
import dataclasses
import errno
import gzip
import json

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax import challenges, metrics
from crossdim_jax.challenges.base import Challenge, Table
from crossdim_jax.challenges.brats import challenge as brats
from crossdim_jax.errors import DataError, ManyErrors
from crossdim_jax.evaluation import predict as predict_lib
from crossdim_jax.evaluation import score as evaluate
from crossdim_jax.metrics import profile
from crossdim_jax.report import page, tables

SHAPE = (12, 14, 10)  # as on disk
AFFINE = np.array([[1.2, 0, 0, -5], [0, 1, 0, 7], [0, 0, 2, 3], [0, 0, 0, 1.0]])  # RAS
LABELS = np.array([0, 1, 2, 4])


def make_case(root, name, seed):
    """A 2021 case whose every modality is 10 + the rank of the label inside a box, 0 outside."""
    rng = np.random.default_rng(seed)
    ranks = np.zeros(SHAPE, int)
    ranks[3:9, 4:11, 2:8] = rng.integers(0, 4, (6, 7, 6))
    ranks[3, 4, 2:6] = range(4)  # all four occur
    inside = np.zeros(SHAPE, bool)
    inside[1:11, 2:13, 1:9] = True
    folder = root / name
    folder.mkdir(parents=True)
    for modality in ("flair", "t1", "t1ce", "t2"):
        image = np.where(inside, 10 + ranks, 0).astype(np.int16)
        nib.save(nib.Nifti1Image(image, AFFINE), folder / f"{name}_{modality}.nii.gz")
    label = nib.Nifti1Image(LABELS[ranks].astype(np.uint8), AFFINE)
    nib.save(label, folder / f"{name}_seg.nii.gz")


def oracle(image):
    """Region probabilities from the intensities of `make_case`, whatever their scale."""
    values = np.unique(image[..., 0][image[..., 0] != 0])
    ranks = np.searchsorted(values, image[..., 0]) * (image[..., 0] != 0)
    assert len(values) == 4
    return np.stack([ranks > 0, np.isin(ranks, (1, 3)), ranks == 3], -1).astype(np.float32)


@pytest.fixture
def challenge():
    return brats.BraTS(layout="2021", et_min_mm3=0.0)


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    for i in range(3):
        make_case(root, f"BraTS2021_{i:05}", seed=i)
    return root


@pytest.fixture
def files(challenge, data):
    return challenge.cases(data, labelled=True)


def predict(challenge, files, folder, fn=oracle, **kwargs):
    return predict_lib.predict_folder(challenge, files, fn, folder, progress=False, **kwargs)


def score(challenge, files, folder, **kwargs):
    return evaluate.evaluate_cases(
        challenge, files, folder, folder.parent / "evaluation", progress=False, **kwargs
    )


def strict_json(path):
    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


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


def test_labels_are_not_read_for_predicting(challenge, files, tmp_path):
    files[0].label.write_bytes(b"nonsense")
    assert not predict(challenge, files[:1], tmp_path / "predictions").failed


def test_existing_predictions_are_kept_unless_told_otherwise(challenge, files, tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    kept = folder / f"{files[1].id}.nii.gz"
    kept.write_bytes(b"mine")
    result = predict(challenge, files, folder)
    assert result.skipped == [kept] and len(result.written) == 2
    assert kept.read_bytes() == b"mine"
    result = predict(challenge, files, folder, overwrite=True)
    assert not result.skipped and len(result.written) == 3
    assert nib.load(kept).shape == SHAPE


def test_failures_are_collected_with_type_and_message(challenge, files, tmp_path, caplog):
    whole = gzip.compress(bytes(100_000))
    files[0].images[2].write_bytes(whole[: len(whole) // 2])
    calls = []

    def fails_once(image):
        calls.append(image.shape)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return oracle(image)

    before = [("other", "DataError: no t1")]
    result = predict(challenge, files, tmp_path / "p", fails_once, errors=before)
    assert [case for case, _ in result.failed] == ["other", files[0].id, files[1].id]
    assert str(files[0].images[2]) in result.failed[1][1]
    assert result.failed[1][1].startswith("DataError: ")
    assert result.failed[2][1] == "RuntimeError: out of memory"
    assert [path.name for path in result.written] == [f"{files[2].id}.nii.gz"]
    assert "fails_once" in caplog.text  # the traceback of what nobody expected
    with pytest.raises(ManyErrors, match="(?s)1 cases are predicted.*no t1.*out of memory"):
        result.raise_if_failed()


def test_output_that_is_no_probability_map_is_a_failure_of_its_case(challenge, files, tmp_path):
    outputs = [
        lambda image: oracle(image)[..., :2],
        lambda image: np.full_like(oracle(image), np.nan),
    ]
    for fn, message in zip(outputs, ("expected", "not finite"), strict=True):
        result = predict(challenge, files[:1], tmp_path / "p", fn)
        assert message in result.failed[0][1] and not list((tmp_path / "p").iterdir())


def test_an_interrupt_is_no_failure(challenge, files, tmp_path):
    def interrupted(image):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(challenge, files, tmp_path / "p", interrupted)


def test_an_unwritable_folder_stops_at_once(challenge, files, tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "predictions"
    with pytest.raises(DataError, match=str(folder)):
        predict(challenge, files, folder, lambda image: pytest.fail("predicted nevertheless"))


def test_a_disk_that_fills_up_stops_at_once(challenge, files, tmp_path, monkeypatch):
    tried = []

    def full(path, *_):
        tried.append(path)
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise DataError(f"{path}: cannot be written") from error

    monkeypatch.setattr(challenge, "write", full)
    with pytest.raises(DataError, match=f"{tmp_path / 'p'}: .*No space left"):
        predict(challenge, files, tmp_path / "p")
    assert len(tried) == 1


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


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["image", "label", "link"])
def test_a_cases_own_files_are_neither_overwritten_nor_taken_for_predictions(
    challenge, files, tmp_path, overwrite, what
):
    folder = tmp_path / "decathlon"
    folder.mkdir()
    own = folder / f"{files[0].id}.nii.gz"
    own.write_bytes(b"the only copy")
    listed = own
    if what == "link":  # the data root is often another name of the same folder
        (tmp_path / "link").symlink_to(folder)
        listed = tmp_path / "link" / own.name
    case = dataclasses.replace(files[0], images=(listed,), label=None)
    if what == "label":
        case = dataclasses.replace(files[0], label=own)
    result = predict(challenge, [case, files[1]], folder, overwrite=overwrite)
    assert own.read_bytes() == b"the only copy"
    assert not result.skipped and len(result.written) == 1
    assert result.failed[0][0] == case.id and f"{own}: is an image or label" in result.failed[0][1]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_process_that_does_not_write_runs_the_network_in_step(
    challenge, files, tmp_path, overwrite
):
    """Both start before the first has written anything, as the network's collectives make them."""
    folder = tmp_path / "predictions"
    predict(challenge, files[:1], folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    seen = []

    def other(image):
        seen.append(image)
        for case in files:  # what the first process writes meanwhile
            (folder / f"{case.id}.nii.gz").touch()
        return oracle(image)

    result = predict(challenge, files, folder, other, overwrite=overwrite, write=False)
    assert len(seen) == len(result.written) == (3 if overwrite else 2)
    assert {path: path.read_bytes() for path in before} == before
    assert all(not (folder / f"{case.id}.nii.gz").read_bytes() for case in files[1:])
    predict(challenge, files, tmp_path / "new", write=False)
    assert not (tmp_path / "new").exists()


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


def test_an_image_that_is_not_masked_is_said_when_it_is_predicted(
    challenge, data, files, tmp_path, caplog
):
    path = data / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj) - 1000, AFFINE), path)
    predict(challenge, files, tmp_path / "p", lambda x: np.zeros((*x.shape[:3], 3), np.float32))
    assert [m for m in caplog.messages if "not masked" in m] == [
        m for m in caplog.messages if m.startswith("BraTS2021_00001: t1: not masked")
    ]
    assert "t1: not masked" in caplog.text and "in all" not in caplog.text


def test_what_is_to_be_said_of_many_cases_is_said_at_the_first_and_counted(
    challenge, data, files, tmp_path, caplog
):
    for path in data.glob("*/*_t1.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj) - 1000, AFFINE), path)
    predict(challenge, files, tmp_path / "p", lambda x: np.zeros((*x.shape[:3], 3), np.float32))
    said = [m for m in caplog.messages if "not masked" in m]
    assert [m.partition(": t1: not masked")[0] for m in said] == [
        files[0].id,
        "3 of 3 cases in all",
    ]
