"""A data set of one's own the public way: from its folder to scores, a report and predictions."""

import contextlib
import csv
import json

import nibabel as nib
import numpy as np
import pytest

from configs import dataset_dsnet, dataset_dxnet, dataset_omnianet
from crossdim_jax.challenges.dataset import phantom
from crossdim_jax.errors import ConfigError
from crossdim_jax.run import experiment, predict, train
from tests import dataset_folders as folders
from tests import toy
from tests.weight_port import tiny

IGNORE = 9
RENAMED = np.array([0, 3, 7], np.uint8)  # values with gaps for the phantoms' 0, 1, 2


def small(config, folder, root):
    """A network of a few blocks, on one device."""
    with config.unlocked():
        del config.phantoms
        config.challenge.name = "dataset"
        config.model.encoder = "efficientnet_tiny"
        config.model.widths = (8, 8, 8, 8, 8)
        config.model.stem_width = 8
        config.model.ops = "lax"  # compiles fastest
        config.mesh.data = 1
        config.data.root, config.data.cache = str(root), str(folder / "cache")
        config.data.num_threads, config.data.num_processes = 1, 0
        config.train.validate_every_epochs = 1
    return config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five phantoms with label values 0, 3 and 7, a margin that nobody annotated, and a spacing."""
    root = phantom.ensure(tmp_path_factory.mktemp("data") / "p", 5, shape=(24, 26, 28))
    for path in (root / "labelsTr").iterdir():
        image = nib.load(path)
        label = RENAMED[np.asarray(image.dataobj)]
        label[:, :6] = IGNORE
        nib.save(nib.Nifti1Image(label, image.affine), path)
    labels = {"background": 0, "shell": 3, "core": 7, "ignore": IGNORE}
    return folders.describe(root, labels=labels, numTraining=5, channel_names={"0": "MR"})


@pytest.fixture(
    scope="module", params=["two convolutions", pytest.param("own", marks=pytest.mark.slow)]
)
def network(request):
    """What trains: the config's own network with a tiny encoder, or two convolutions instead."""
    stands_in = request.param == "two convolutions"
    with contextlib.ExitStack() as stack:
        stack.enter_context(tiny.registered())
        stack.enter_context(toy.sketched())
        for name in ("dxnet", "omnianet") if stands_in else ():
            stack.enter_context(toy.standing_in_for(name))
        yield


@pytest.fixture(scope="module")
def job(network, root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dxnet")
    config = small(dataset_dxnet.get_config("debug"), folder, root)
    with config.unlocked():
        config.data.split.kind = "official"
        config.fold = 1
        config.train.batch_size = 2
    made = experiment.build(config, folder / "run")
    train.run(made)
    return made


def test_the_fold_is_nnunets_and_every_step_counts(job):
    split = json.loads((job.workdir / "splits.json").read_text())
    assert split["validation"] == ["phantom_004"]  # see KFOLD in test_dataset_layouts.py
    steps = [json.loads(line) for line in (job.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in steps if "loss" in line)


def test_scores_of_any_labels_reach_table_and_report(job):
    (row,) = csv.DictReader((job.workdir / "evaluation/cases.csv").read_text().splitlines())
    assert {"dice_shell", "nsd_core", "hd95_mm_shell", "volume_ml_core"} <= set(row)
    assert "dice_ignore" not in row and "dice_background" not in row
    table = (job.workdir / "evaluation/table.md").read_text()
    assert "HD95 (mm)" in table and "within 2 mm" in table and "Mean over the foreground" in table
    report = (job.workdir / "report.html").read_text()
    assert "could not be made" not in report and "cannot be shown" not in report


def test_predictions_hold_the_files_own_values_on_their_own_grid(job, root, tmp_path):
    out = predict.run(job, str(root / "imagesTr"), str(tmp_path / "out"))
    assert sorted(path.name for path in out.iterdir()) == [
        f"phantom_{i:03d}.nii.gz" for i in range(5)
    ]
    written = nib.load(out / "phantom_002.nii.gz")
    image = nib.load(root / "imagesTr/phantom_002_0000.nii.gz")
    assert written.shape == image.shape and written.get_data_dtype() == np.uint8
    np.testing.assert_allclose(written.affine, image.affine)
    assert set(np.unique(np.asarray(written.dataobj))) <= set(RENAMED.tolist())


def test_volumes_slice_by_slice_with_regions(network, tmp_path):
    other = phantom.ensure(tmp_path / "p", 4, shape=(24, 26, 28))
    labels = {"background": 0, "ball": [1, 2], "core": 2}
    folders.describe(other, labels=labels, regions_class_order=[1, 2], channel_names={"0": "MR"})
    config = small(dataset_omnianet.get_config("debug"), tmp_path, other)
    with pytest.raises(ConfigError, match="'dice_ce' is for softmax outputs"):
        experiment.build(config, tmp_path / "run")
    with config.unlocked():
        config.train.loss = "dice_bce"
    made = experiment.build(config, tmp_path / "run")
    train.run(made)
    rows = list(csv.DictReader((made.workdir / "evaluation/cases.csv").read_text().splitlines()))
    assert len(rows) == 2 and {"dice_ball", "dice_core"} <= set(rows[0])
    label = np.asarray(nib.load(made.workdir / "predictions" / f"{rows[0]['id']}.nii.gz").dataobj)
    assert label.shape == (28, 26, 24)


@pytest.mark.parametrize("module", [dataset_dxnet, dataset_dsnet, dataset_omnianet])
def test_one_field_says_root_and_fold(module):
    config = module.get_config()
    config.data.root, config.fold = "/somewhere", 3
    assert config.challenge.root == "/somewhere"
    assert config.data.split.fold == 3
    with pytest.raises(ValueError, match=":demo, :debug"):
        module.get_config("other")
