"""`reestimate FILE`: running statistics measured on volumes, written as a file that loads."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.errors import DataError, WeightsError
from crossdim_jax.weights.file import load_weights, save_weights
from crossdim_jax.weights.recipe import Recipe
from crossdim_jax.weights.record import check_fit
from tests.weight_port import tiny
from weight_port import forward
from weight_port.__main__ import main
from weight_port.commands import reestimate
from weight_port.commands.making import record
from weight_port.convert import convert

BOTH = ("flair", "t1")
DEEP = {"ndim": 3, "in_channels": 2, "norm": "batch", "inflate": "mean", "stem": "gray"}


@pytest.fixture(autouse=True)
def registered():
    with tiny.registered():
        yield


@pytest.fixture
def volumes(tmp_path, rng):
    """Three cases of two channels, each in a file of its own, in a rim of zeros."""
    folder = tmp_path / "cases"
    folder.mkdir()
    for case in range(3):
        for channel in BOTH:
            voxels = np.zeros((44, 42, 40), np.float32)
            voxels[3:-2, 2:-3, 1:-2] = rng.normal(50, 10, size=(39, 37, 37))
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"case{case}_{channel}.nii.gz")
    return folder


def write(path, **changes):
    origin, recipe = tiny.source(padding="symmetric"), Recipe(**{**DEEP, **changes})
    converted = convert(origin, recipe)
    return save_weights(path, converted.arrays, record(origin, recipe, converted))


def run(path, *arguments):
    flags = ["--patch=32", "--patches=4", "--batch=2", "--no-certificate"]
    return main(["reestimate", str(path), *flags, *map(str, arguments)])


def features(path, image):
    weights = load_weights(path)
    settings = forward.attributes(weights.metadata)
    return forward.features("efficientnet_tiny", weights.arrays, image, **settings)


def test_repeat_with_measured_statistics_is_mean_with_measured_statistics(
    volumes, tmp_path, rng, capsys
):
    """The factor between the two, kd at every convolution, goes into the statistics alone.

    With carried statistics they are far apart, which is why that is refused.
    """
    patterns = ["--volumes", *(volumes / f"*_{channel}.nii.gz" for channel in BOTH)]
    made = {}
    for mode in ("repeat", "mean"):
        path = write(tmp_path / f"{mode}-stale.safetensors", inflate=mode, statistics="reestimate")
        needs = {"norm": "batch", "inflate": mode}
        with pytest.raises(WeightsError, match="stale"):
            check_fit(load_weights(path).metadata, needs)
        assert run(path, *patterns) == 0
        made[mode] = tmp_path / f"{mode}-reestimated.safetensors"
        found = load_weights(made[mode])
        check_fit(found.metadata, needs)
        assert found.metadata["statistics"] == "reestimated (4 patches)"
        assert found.metadata["reestimated_on"]["files"][:2] == [
            "case0_flair.nii.gz",
            "case0_t1.nii.gz",
        ]
        before = load_weights(path).arrays
        changed = {key for key in before if not np.array_equal(before[key], found.arrays[key])}
        assert changed == {key for key in before if key.startswith("batch_stats/")}
    assert "measured 4 patches of (32, 32, 32) from 3 cases" in capsys.readouterr().out
    image = rng.normal(size=(1, 32, 32, 32, 2)).astype(np.float32)

    def errors(repeat, mean):
        pairs = zip(features(repeat, image), features(mean, image), strict=True)
        # Not the last, at /32: there a patch of 32^3 is one voxel, too few to measure anything.
        return [forward.relative_error(a, b) for a, b in pairs][:-1]

    assert max(errors(*made.values())) < 1e-3  # not 0: the same eps to other variances
    stale = [tmp_path / f"{mode}-stale.safetensors" for mode in made]
    assert min(errors(*stale)) > 0.5


def test_a_2d_file_is_measured_on_slices(volumes, tmp_path):
    path = write(tmp_path / "flat.safetensors", ndim=2, inflate=None, in_channels=1, stem="sum")
    assert run(path, "--volumes", volumes / "*_t1.nii.gz", f"--out={tmp_path}/x.safetensors") == 0
    found = load_weights(tmp_path / "x.safetensors")
    assert found.metadata["reestimated_on"]["patch"] == [32, 32]
    # The stem's response to z-scored noise: variance is the kernel's energy, nearly.
    kernel = found.arrays["params/encoder/conv_stem/kernel"]
    energy = np.square(kernel).sum((0, 1, 2))
    np.testing.assert_allclose(found.arrays["batch_stats/encoder/bn1/var"], energy, rtol=0.3)


def test_files_that_cannot_be_measured_are_refused(volumes, tmp_path, capsys):
    pattern = ["--volumes", volumes / "*_t1.nii.gz"]
    path = write(tmp_path / "w.safetensors", norm="instance")
    assert run(path, *pattern) == 1
    assert "'instance', which keeps no running statistics" in capsys.readouterr().err
    path = write(tmp_path / "w.safetensors")
    (tmp_path / "w-reestimated.safetensors").write_bytes(b"mine")
    assert run(path, *pattern) == 1
    assert "w-reestimated.safetensors exists" in capsys.readouterr().err
    assert run(path, *pattern, "--overwrite", "--patch=16") == 1
    assert "--patch=16: expected 3 lengths of 32 or more" in capsys.readouterr().err
    assert run(path, *pattern, "--overwrite") == 1  # one channel, where the file takes two
    assert "case0_t1.nii.gz" in capsys.readouterr().err
    assert (tmp_path / "w-reestimated.safetensors").read_bytes() == b"mine"


def test_out_is_a_file_or_a_folder(volumes, tmp_path, capsys):
    path = write(tmp_path / "w-stale.safetensors", statistics="reestimate")
    patterns = ["--volumes", *(volumes / f"*_{channel}.nii.gz" for channel in BOTH)]
    assert run(path, *patterns, f"--out={tmp_path / 'folder'}") == 0
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["w-reestimated.safetensors"]
    capsys.readouterr()
    assert run(path, "--volumes", "nothing", f"--out={path}/x.safetensors") == 1
    assert f"{path} is not a folder" in capsys.readouterr().err  # before anything is read


def test_channels_are_matched_by_pattern_or_read_from_the_fourth_axis(volumes, rng):
    flair, t1 = (str(volumes / f"*_{channel}.nii.gz") for channel in BOTH)
    cases = reestimate.find_cases([flair, t1], 2)
    assert [Path(file).name for file in cases[0]] == ["case0_flair.nii.gz", "case0_t1.nii.gz"]
    assert len(cases) == 3 and reestimate.read_case(cases[0], 2).shape == (37, 37, 39, 2)
    assert len(reestimate.find_cases([flair, t1], 1)) == 6  # names a shell has expanded
    (volumes / "case2_t1.nii.gz").unlink()
    with pytest.raises(DataError, match="the channels have .2, 3. files"):
        reestimate.find_cases([flair, t1], 2)
    with pytest.raises(DataError, match="found 2 patterns, expected 3"):
        reestimate.find_cases([flair, t1], 3)
    with pytest.raises(DataError, match="'nowhere/.*matches no file"):
        reestimate.find_cases(["nowhere/*.nii"], 1)
    both = rng.normal(size=(40, 40, 40, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(both, np.eye(4)), volumes / "all.nii.gz")
    case = (str(volumes / "all.nii.gz"),)
    assert reestimate.read_case(case, 3).shape == (40, 40, 40, 3)
    with pytest.raises(DataError, match="holds 3 channels, but the weights take 2"):
        reestimate.read_case(case, 2)


def test_patches_follow_the_seed(volumes):
    cases = reestimate.find_cases([str(volumes / "*_t1.nii.gz")], 1)
    first, again, other = (
        next(reestimate.patches_of(cases, (32, 32, 32), 1, batch=3, seed=seed))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == (3, 32, 32, 32, 1) and not np.array_equal(first, other)
