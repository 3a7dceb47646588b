"""All of CAMUS: from files to tables, figures and predictions.

On a network of two convolutions; among the slow tests on the whole one.
"""

import contextlib
import csv
import json

import nibabel as nib
import numpy as np
import pytest

from configs import camus_omnianet
from crossdim_jax.challenges.camus import phantom
from crossdim_jax.imaging import metaimage
from crossdim_jax.run import experiment, predict, train
from tests import toy


@pytest.fixture(scope="module", params=["short", pytest.param("whole", marks=pytest.mark.slow)])
def job(request, tmp_path_factory):
    """A run on the official split of four patients, one epoch of it."""
    folder = tmp_path_factory.mktemp("camus")
    root = phantom.ensure(folder / "p", 4, pixel_mm=1.5, n_frames=2)
    config = camus_omnianet.get_config("debug")
    with config.unlocked():
        del config.phantoms
        config.mesh.data = 1
        config.data.root, config.data.cache = str(root), str(folder / "cache")
        config.data.split.kind = "official"
        config.data.num_threads, config.data.num_processes = 1, 0
        config.train.epochs = 1
        config.train.batch_size = 4
        config.train.validate_every_epochs = 1
    standing_in = toy.standing_in_for("omnianet")
    with standing_in if request.param == "short" else contextlib.nullcontext(), toy.sketched():
        made = experiment.build(config, folder / "run")
        train.run(made)
    return made


def test_the_test_set_of_the_official_split_is_what_is_scored(job):
    split = json.loads((job.workdir / "splits.json").read_text())
    assert [len(split[name]) for name in ("train", "validation", "test")] == [8, 4, 4]
    rows = list(csv.DictReader((job.workdir / "evaluation/cases.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == split["test"]
    assert {"dice_LVendo", "mad_mm_LVepi", "hd_mm_LA"} <= set(rows[0])
    summary = json.loads((job.workdir / "evaluation/summary.json").read_text())
    assert set(summary["groups"]) == {"ED", "ES", "Image quality Good"}
    assert [table["name"] for table in summary["tables"]] == ["table2", "table3", "patients"]


def test_the_run_folder_holds_tables_figures_and_a_report(job):
    for name in ("table2.csv", "table3.csv", "patients.csv", "table.md"):
        assert (job.workdir / "evaluation" / name).stat().st_size > 100
    table = (job.workdir / "evaluation" / "table.md").read_text()
    assert "Table 2: contours by phase" in table and "MAD (mm)" in table
    report = (job.workdir / "report.html").read_text()
    assert "could not be made" not in report and "cannot be shown" not in report
    assert (job.workdir / "figures" / "phases.png").is_file()


def test_new_patients_are_predicted_in_either_layout(job, tmp_path):
    root = phantom.ensure(tmp_path / "p", 1, layout="mhd", pixel_mm=1.5, n_frames=2)
    out = predict.run(job, str(root), str(tmp_path / "out"))
    names = [f"patient0001_{v}_{w}" for v in ("2CH", "4CH") for w in ("ED", "ES", "sequence")]
    assert sorted(path.name for path in out.glob("*.nii.gz")) == [f"{n}.nii.gz" for n in names]
    for name in names:
        label, geometry = metaimage.read_mhd_label(out / "mhd" / f"{name}.mhd")
        source = metaimage.read_mhd(root / "training" / "patient0001" / f"{name}.mhd")[1]
        assert label.shape == source.shape_zyx and geometry.spacing_mm == source.spacing_mm
        np.testing.assert_array_equal(
            label, np.asarray(nib.load(out / f"{name}.nii.gz").dataobj).T.reshape(label.shape)
        )
    (row,) = csv.DictReader((out / "patients.csv").read_text().splitlines())
    assert row["patient"] == "patient0001" and row["source"] == "stills"
    assert len((out / "films.csv").read_text().splitlines()) == 5
