"""Two runs are the same numbers only if every line, array, voxel and score is, times apart."""

import json
import shutil

import nibabel as nib
import numpy as np
import orbax.checkpoint as ocp
import pytest

from benchmarks import same_numbers

IMAGE = "predictions/a.nii.gz"


def save(workdir, scale):
    arrays = {"params": {"kernel": np.arange(6.0, dtype=np.float32) * scale}, "step": np.int32(2)}
    folder = workdir / "checkpoints" / "2" / "state"
    shutil.rmtree(folder, ignore_errors=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder, arrays)


def write_metrics(workdir, **changes):
    row = {"kind": "train", "step": 1, "loss": 0.5, "seconds": 3.0, "images_per_s": 4.0}
    (workdir / "metrics.jsonl").write_text(json.dumps(row | changes) + "\n")


def write_prediction(workdir, label):
    nib.save(nib.Nifti1Image(np.full((3, 4, 5), label, np.uint8), np.eye(4)), workdir / IMAGE)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A run folder with one of everything that is compared."""
    workdir = tmp_path_factory.mktemp("runs") / "old"
    for folder in ("predictions", "evaluation"):
        (workdir / folder).mkdir(parents=True)
    write_metrics(workdir)
    save(workdir, 1)
    write_prediction(workdir, 2)
    (workdir / "evaluation" / "cases.csv").write_text("id,dice\na,0.5\n")
    return workdir


@pytest.fixture
def new(old, tmp_path):
    return shutil.copytree(old, tmp_path / "new")


def one_voxel(workdir):
    image = nib.load(workdir / IMAGE)
    voxels = np.asarray(image.dataobj).copy()
    voxels[1, 2, 3] = 1
    nib.save(nib.Nifti1Image(voxels, image.affine), workdir / IMAGE)


CHANGES = {
    "voxel": (one_voxel, [IMAGE]),
    "array": (lambda w: save(w, np.nextafter(np.float32(1), 2)), ["checkpoints/2/state"]),
    "loss": (lambda w: write_metrics(w, loss=0.25), ["metrics.jsonl:1"]),
    "time": (lambda w: write_metrics(w, seconds=9.0, images_per_s=1.0), []),
    "missing": (lambda w: (w / IMAGE).unlink(), [IMAGE, f"{IMAGE} grid"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_named_and_the_status_says_so(old, new, change, capsys):
    edit, names = CHANGES[change]
    edit(new)
    assert same_numbers.main(str(old), str(new)) == bool(names)
    *lines, summary = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names)
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"differs: {name}")
    assert f"6 compared, {len(names)} differ" in summary
