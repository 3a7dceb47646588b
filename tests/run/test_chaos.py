"""All of CHAOS: from DICOM to tables, figures and a submission.

On a network of two convolutions; among the slow tests on the whole one.
"""

import contextlib
import csv
import json
import shutil

import numpy as np
import pytest

from configs import chaos_omnianet
from crossdim_jax.challenges.chaos import phantom, submission
from crossdim_jax.errors import ConfigError, ManyErrors
from crossdim_jax.imaging import nifti
from crossdim_jax.run import experiment, predict, train
from tests import toy


@pytest.fixture(scope="module", params=["short", pytest.param("whole", marks=pytest.mark.slow)])
def job(request, tmp_path_factory):
    """A run of one epoch on two phantoms of each modality, with augmentation."""
    folder = tmp_path_factory.mktemp("chaos")
    root = phantom.ensure(folder / "p", 2, size=48)
    config = chaos_omnianet.get_config("debug")
    with config.unlocked():
        del config.phantoms
        config.data.root, config.data.cache = str(root), str(folder / "cache")
        config.data.num_threads, config.data.num_processes = 1, 0
        config.challenge.formats = ("png", "seg")
        config.mesh.data = 1
    standing_in = toy.standing_in_for("omnianet")
    with standing_in if request.param == "short" else contextlib.nullcontext(), toy.sketched():
        made = experiment.build(config, folder / "run")
        train.run(made)
    return made


def test_the_run_ends_in_the_tables_of_the_tasks(job):
    folder = job.workdir / "evaluation"
    rows = list(csv.DictReader((folder / "tasks.csv").read_text().splitlines()))
    assert [row["Task"] for row in rows] == [f"Task {n}" for n in range(1, 6)] + ["Average"]
    assert [row["n"] for row in rows] == ["3", "1", "2", "3", "2", ""]
    numbers = list(csv.DictReader((folder / "tasks_values.csv").read_text().splitlines()))
    cases = list(csv.DictReader((folder / "cases.csv").read_text().splitlines()))
    assert [case["id"] for case in cases] == sorted(job.config.data.split.validation)
    ct = next(case for case in cases if case["id"] == "CT_2")
    assert float(numbers[1]["dice_mean"]) == pytest.approx(float(ct["dice_liver"]))
    assert ct["dice_spleen"] == ""  # not annotated
    table = (folder / "table.md").read_text()
    assert "CHAOS tasks (Table 4)" in table and "RAVD (%)" in table and "Each organ" in table


def test_the_report_shows_organs_and_nothing_is_lost(job):
    report = (job.workdir / "report.html").read_text()
    assert "could not be made" not in report and "cannot be shown" not in report
    assert "best, median and worst case of each organ" in report
    assert (job.workdir / "figures" / "organs_mr.png").is_file()
    summary = json.loads((job.workdir / "evaluation/summary.json").read_text())
    assert summary["provenance"]["t1dual_result"] == "InPhase"


def test_new_series_become_a_submission_nifti_and_segmentations(job, tmp_path):
    root = phantom.ensure(tmp_path / "p", 1, size=56, seed=3)
    shutil.move(root / "Train_Sets", root / "Test_Sets")
    out = predict.run(job, str(root), str(tmp_path / "out"))
    chaos = job.challenge
    files = {case.id: case for case in chaos.cases(root, labelled=True)}
    assert sorted(p.name for p in out.glob("*.nii.gz")) == sorted(f"{i}.nii.gz" for i in files)
    assert sorted(p.name for p in out.glob("*.seg.dcm")) == sorted(f"{i}.seg.dcm" for i in files)
    for case, task in (("CT_1", 4), ("MR_1_T1DUAL_InPhase", 5), ("MR_1_T2SPIR", 5)):
        label, geometry = nifti.read_label(out / f"{case}.nii.gz")
        np.testing.assert_array_equal(submission.read(out / "submission", files[case], task), label)
        loaded = chaos.load(files[case])
        np.testing.assert_allclose(geometry.affine, loaded.geometry.affine, atol=1e-4)
        if case == "CT_1":
            assert set(np.unique(label)) <= {0, 1}
    again = predict.run(
        job, str(root / "Test_Sets" / "MR" / "1" / "T2SPIR" / "DICOM_anon"), str(tmp_path / "two")
    )
    assert [path.name for path in again.glob("*.nii.gz")] == ["MR_1_T2SPIR.nii.gz"]


def test_a_damaged_series_does_not_keep_the_others_from_being_predicted(job, tmp_path):
    root = phantom.ensure(tmp_path / "p", 1, size=56, seed=4)
    (root / "Train_Sets" / "CT" / "1" / "DICOM_anon" / "i0004,0000b.dcm").unlink()
    shutil.rmtree(root / "Train_Sets" / "CT" / "1" / "Ground")
    with pytest.raises(ManyErrors, match=r"CT_1: .*i0005,0000b.dcm: lies .*1 missing there"):
        predict.run(job, str(root), str(tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("MR_1_*.nii.gz"))) == 3


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("augment.scale", 1.5, "augment.scale=1.5"),
        ("augment.flip", (2,), r"axes 0 to 1"),
        ("data.patch", (100, 100), "multiples of 32"),
    ],
)
def test_settings_that_cannot_work_stop_before_any_data_is_read(field, value, text, tmp_path):
    config = chaos_omnianet.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({field: value, "data.root": str(tmp_path)})
    with pytest.raises(ConfigError, match=text):
        train.run(experiment.build(config, tmp_path / "run"))


def test_the_configs_are_those_of_the_paper(tmp_path):
    config = chaos_omnianet.get_config()
    assert config.model.encoder == "efficientnet_b4" and config.data.patch == (512, 512)
    assert config.train.batch_size == 8 and config.train.loss == "dice_ce"
    assert experiment.build(config, tmp_path).training.epochs == 90
    assert config.augment.probability == 0.5
    with pytest.raises(ValueError, match="known: :demo, :debug"):
        chaos_omnianet.get_config("small")
