import json

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.challenges.brats import phantom
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.imaging import preprocess

SMALL = (26, 30, 28)


def contents(root):
    return {path.name: path.read_bytes() for path in root.rglob("*.nii.gz")}


@pytest.fixture(scope="module")
def six():
    """Six phantoms of default size: images (z, y, x, 4), labels (z, y, x)."""
    return [phantom.make(index) for index in range(6)]


def test_phantoms_are_a_function_of_seed_and_index():
    one, again, seed, index = (
        phantom.make(i, shape=SMALL, seed=s) for i, s in ((3, 1), (3, 1), (3, 2), (4, 1))
    )
    np.testing.assert_array_equal(one[0], again[0])
    np.testing.assert_array_equal(one[1], again[1])
    assert not np.array_equal(one[0], seed[0]) and not np.array_equal(one[0], index[0])


def test_regions_are_nested_and_lie_in_the_brain(six):
    challenge = challenges.get("phantom")
    for image, label in six:
        assert image.dtype == np.int16 and label.dtype == np.uint8
        brain = image.any(axis=-1)
        np.testing.assert_array_equal(brain, image.all(axis=-1))
        assert not label[~brain].any()
        whole, core, enhancing = np.moveaxis(challenge.encode(label)[0].astype(bool), -1, 0)
        assert (core <= whole).all() and (enhancing <= core).all()
        assert 0.005 * brain.sum() < whole.sum() < 0.25 * brain.sum()
        assert (label == 1).sum() > 50


def test_some_have_no_enhancing_tumour_and_the_others_enough(six):
    volumes = [(label == 4).sum() * np.prod(phantom.SPACING_MM) for _, label in six]
    assert [volume == 0 for volume in volumes] == [False] * 4 + [True, False]
    assert all(volume > 300 for volume in volumes if volume)


def test_contrasts_are_those_of_mr(six):
    for image, label in six:
        tissue = {
            value: image[label == value].astype(float).mean(axis=0)
            for value in (1, 2, 4)
            if (label == value).any()
        }
        brain = image[(label == 0) & image.any(axis=-1)].astype(float).mean(axis=0)
        flair, t1, t1ce, t2 = range(4)
        assert tissue[2][flair] > 1.3 * brain[flair] and tissue[2][t2] > 1.3 * brain[t2]
        assert tissue[2][t1] < brain[t1] and tissue[1][t1ce] < brain[t1ce]
        if 4 in tissue:
            assert tissue[4][t1ce] > 1.2 * max(brain[t1ce], tissue[1][t1ce], tissue[2][t1ce])


def test_no_threshold_on_one_modality_finds_the_tumour(six):
    def dice(truth, found):
        return 2 * (truth & found).sum() / (truth.sum() + found.sum())

    normed = [
        (preprocess.zscore(image, preprocess.inside(image)[0]), label > 0) for image, label in six
    ]
    for channel in range(4):
        best = max(
            np.mean([dice(truth, image[..., channel] > level) for image, truth in normed])
            for level in np.arange(-1, 3, 0.1)
        )
        assert best < 0.75


def test_files_are_on_grids_of_several_orientations(tmp_path):
    spacing = (1.2, 1.0, 1.1)
    folders = phantom.generate(tmp_path, 3, shape=SMALL, spacing_mm=spacing)
    challenge = challenges.get("phantom")
    cases = challenge.cases(tmp_path, labelled=True)
    assert [case.id for case in cases] == [folder.name for folder in folders]
    codes = []
    for index, files in enumerate(cases):
        codes.append("".join(nib.aff2axcodes(nib.load(files.images[0]).affine)))
        case = challenge.load(files)
        image, label = phantom.make(index, shape=SMALL)
        np.testing.assert_array_equal(case.image, image)
        np.testing.assert_array_equal(case.label, label)
        assert case.spacing_mm == pytest.approx(spacing)
    assert codes == ["LPS", "RAS", "PIR"]


def test_the_settings_of_brats_are_understood():
    settings = {"layout": "auto", "convention": "auto", "modalities": ("t2", "flair")}
    challenge = challenges.get("phantom", **settings, et_min_mm3=1.0, aggregate="synapse2022")
    assert challenge.modalities == ("t2", "flair") and challenge.convention == "2021"
    for field in ("layout", "convention"):
        with pytest.raises(ConfigError, match=f"{field} is 'msd'; phantoms"):
            challenges.get("phantom", **{field: "msd"})


def test_ensure_writes_only_what_is_absent(tmp_path):
    root = phantom.ensure(tmp_path / "p", 2, shape=SMALL)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")}
    (root / "Phantom_001" / "Phantom_001_t1.nii.gz").unlink()
    phantom.ensure(root, 3, shape=SMALL)
    assert len(contents(root)) == 15
    kept = root / "Phantom_000"
    assert all(p.stat().st_mtime_ns == times[p] for p in kept.iterdir())
    phantom.ensure(root, 1, shape=SMALL)
    assert len(contents(root)) == 5
    assert all(p.stat().st_mtime_ns == times[p] for p in kept.iterdir())


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"shape": (26, 30, 30)}, {"spacing_mm": (1.0, 1.0, 2.0)}]
)
def test_ensure_replaces_phantoms_made_otherwise(tmp_path, change):
    phantom.ensure(tmp_path, 2, shape=SMALL)
    before = contents(tmp_path)
    phantom.ensure(tmp_path, 2, **({"shape": SMALL} | change))
    after = contents(tmp_path)
    assert before.keys() == after.keys()
    assert not any(before[name] == after[name] for name in before)


def test_ensure_leaves_foreign_files_alone(tmp_path):
    (tmp_path / "Phantom_000").mkdir()
    (tmp_path / "Phantom_000" / "precious.nii.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=f"{tmp_path}: holds Phantom_000 and no phantoms.json"):
        phantom.ensure(tmp_path, 1, shape=SMALL)
    assert contents(tmp_path) == {"precious.nii.gz": b"x"}


def test_a_record_cannot_make_ensure_remove_other_folders(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    phantom.ensure(tmp_path / "p", 1, shape=SMALL)
    path = tmp_path / "p" / "phantoms.json"
    record = json.loads(path.read_text())
    record["cases"] = ["Phantom_000/../../victim", "../victim", "Phantom_000"]
    path.write_text(json.dumps(record))
    phantom.ensure(tmp_path / "p", 1, shape=SMALL, seed=1)
    assert victim.is_dir()
    path.write_text("{}")
    with pytest.raises(DataError, match="phantoms.json: is not a record"):
        phantom.ensure(tmp_path / "p", 1, shape=SMALL)


def test_an_interrupted_run_is_finished_by_the_next(tmp_path, monkeypatch):
    save, count = nib.save, []

    def interrupted(image, path):
        count.append(path)
        if len(count) == 8:
            raise KeyboardInterrupt
        save(image, path)

    monkeypatch.setattr(phantom.nib, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        phantom.ensure(tmp_path, 2, shape=SMALL)
    monkeypatch.setattr(phantom.nib, "save", save)
    phantom.ensure(tmp_path, 2, shape=SMALL)
    assert len(contents(tmp_path)) == 10 and not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file/p: phantoms cannot be written"):
        phantom.ensure(tmp_path / "file" / "p", 1, shape=SMALL)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n": 0}, "n=0"),
        ({"seed": -1}, "seed=-1"),
        ({"shape": (8, 30, 30)}, "each a whole number, 24 or more"),
        ({"spacing_mm": (1, 0, 1)}, "spacing_mm=.*each"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, says):
    with pytest.raises(ConfigError, match=says):
        phantom.ensure(tmp_path, **({"n": 1} | settings))
