import dataclasses
import gzip
import json

import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.data import fingerprint
from crossdim_jax.errors import DataError, ManyErrors
from crossdim_jax.imaging.case import Case, CaseFiles


def measured(challenge, root, **kwargs):
    files = challenge.cases(root, labelled=True)
    return fingerprint.measure(challenge, files, progress=False, **kwargs)


@pytest.fixture
def loads(monkeypatch, challenge):
    """Ids of the cases that are read."""
    found, load = [], type(challenge).load

    def noting(self, files):
        found.append(files.id)
        return load(self, files)

    monkeypatch.setattr(type(challenge), "load", noting)
    return found


class InMemory(type(challenges.get("phantom"))):
    """Cases without files: {id: (image (z, y, x, 4), label, spacing_mm)}."""

    def __init__(self, arrays):
        super().__init__()
        self.arrays = arrays

    def load(self, files):
        image, label, spacing_mm = self.arrays[files.id]
        return Case(files.id, files.id, image, label, spacing_mm, None)


def of_arrays(arrays):
    challenge = InMemory(arrays)
    cases = {
        name: fingerprint.measure_case(challenge, CaseFiles(name, name, (), None))
        for name in arrays
    }
    return fingerprint.Fingerprint(challenge.modalities, len(challenge.classes), cases)


def ball(rng, scale=1.0, edge=24):
    """A head of values around 5 in zeros, and a tumour within it."""
    z, y, x = np.ogrid[:edge, :edge, :edge]
    radius = np.sqrt(sum((a - edge / 2 + 0.5) ** 2 for a in (z, y, x)))
    image = np.where(radius[..., None] < edge / 3, rng.normal(5, 1, (edge,) * 3 + (4,)), 0)
    label = np.where(radius < edge / 6, 2, 0).astype(np.uint8)
    return (image * scale).astype(np.float32), label, (1.0, 1.0, 1.0)


def test_shapes_are_those_of_the_masked_inside(rng):
    image, label, _ = ball(rng)
    image[..., 1] += 1  # not masked
    found = of_arrays({"masked": ball(rng), "open": (image, label, (3.0, 1.0, 1.0))})
    assert found.cases["masked"].shape == (16, 16, 16)
    assert found.cases["open"].shape == found.cases["open"].full_shape == (24, 24, 24)
    assert found.masked == (2, 1, 2, 2)
    np.testing.assert_array_equal(found.shapes((1.0, 1.0, 2.0)), [[16, 16, 8], [72, 24, 12]])


def test_intensities_are_those_of_the_foreground(rng):
    image, label, spacing_mm = ball(rng)
    found = of_arrays({"a": (image, label, spacing_mm)}).intensities()
    values = image[label > 0]
    assert set(found) == {"0", "1", "2", "3"}
    for c in range(4):
        one = values[:, c].astype(np.float64)
        expected = [one.mean(), one.std(), np.median(one), one.min(), one.max()]
        names = ("mean", "sd", "median", "minimum", "maximum")
        np.testing.assert_allclose([found[str(c)][n] for n in names], expected, rtol=0.01)
        tails = np.percentile(one, (0.25, 0.75, 99.25, 99.75))  # to within two quantiles
        assert tails[0] < found[str(c)]["percentile_00_5"] < tails[1]
        assert tails[2] < found[str(c)]["percentile_99_5"] < tails[3]


def test_each_case_counts_the_same_however_large_its_structures(rng):
    """As if equally many voxels were drawn of each."""
    small, large = ball(rng, 1.0), ball(rng, 3.0, edge=36)
    found = of_arrays({"small": small, "large": large}).intensities()["0"]
    one, two = (image[label > 0][:, 0].astype(float) for image, label, _ in (small, large))
    assert two.size > 3 * one.size
    drawn = np.concatenate([rng.choice(one, 100_000), rng.choice(two, 100_000)])
    np.testing.assert_allclose(
        [found["mean"], found["sd"], found["percentile_00_5"], found["percentile_99_5"]],
        [drawn.mean(), drawn.std(), *np.percentile(drawn, (0.5, 99.5))],
        rtol=0.03,
    )
    assert found["minimum"] == one.min() and found["maximum"] == two.max()


def test_large_structures_are_thinned_and_many_regions_cut_up(rng, monkeypatch):
    image, label, spacing_mm = ball(rng, edge=36)
    whole = of_arrays({"a": (image, label, spacing_mm)})
    monkeypatch.setattr(fingerprint, "MOST_VOXELS", 400)
    monkeypatch.setattr(fingerprint, "_SLAB", 1)
    thinned = of_arrays({"a": (image, label, spacing_mm)})
    assert thinned.cases["a"].foreground == whole.cases["a"].foreground
    for c in "0123":
        one, two = thinned.intensities()[c], whole.intensities()[c]
        assert one["mean"] != two["mean"]
        np.testing.assert_allclose(one["mean"], two["mean"], rtol=0.05)


def test_a_case_without_foreground_gives_sizes_only(rng):
    image, label, spacing_mm = ball(rng)
    found = of_arrays({"a": (image, label, spacing_mm), "b": (image, label * 0, spacing_mm)})
    assert found.cases["b"].intensities == () and len(found.shapes(None)) == 2
    alone = of_arrays({"a": (image, label, spacing_mm)})
    assert found.intensities() == alone.intensities()
    assert of_arrays({"b": (image, label * 0, spacing_mm)}).intensities() == {}


@pytest.mark.parametrize(
    "workers", [{"num_threads": 3}, pytest.param({"num_processes": 2}, marks=pytest.mark.slow)]
)
def test_threads_and_processes_find_the_same(challenge, phantom_folder, workers):
    alone = measured(challenge, phantom_folder, num_threads=0)
    assert measured(challenge, phantom_folder, **workers) == alone
    assert list(alone.cases) == sorted(alone.cases) and len(alone.cases) == 4


def test_nothing_is_read_twice(challenge, phantom_folder, tmp_path, loads):
    first = measured(challenge, phantom_folder, folder=tmp_path)
    assert len(loads) == 4
    assert measured(challenge, phantom_folder, folder=tmp_path) == first
    assert len(loads) == 4


def test_only_what_has_changed_is_read_again(challenge, own_phantoms, tmp_path, loads):
    measured(challenge, own_phantoms, folder=tmp_path / "cache")
    loads.clear()
    one = min(path for path in own_phantoms.iterdir() if path.is_dir())
    [path] = one.glob("*_flair.nii.gz")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    measured(challenge, own_phantoms, folder=tmp_path / "cache")
    assert loads == [one.name]


def test_what_prepares_cases_does_not_change_the_key_and_what_reads_them_does(
    challenge, monkeypatch, phantom_folder
):
    files = challenge.cases(phantom_folder, labelled=True)[0]
    content = fingerprint.digests.Digests(None).of_case(files)

    def key(**more):
        settings = type(challenge).fingerprint(challenge) | more
        monkeypatch.setattr(challenge, "fingerprint", lambda: settings)
        return fingerprint.key(challenge, files, content)

    assert key() == key(spacing_mm=[1, 1, 1], normalisation=["ct"])
    assert key() != key(grid_tolerance_mm=1.0)


@pytest.mark.parametrize("damage", ["", "{", "[]", "number", "entry", "quantiles"])
def test_a_damaged_record_costs_time_only(challenge, phantom_folder, tmp_path, loads, damage):
    first = measured(challenge, phantom_folder, folder=tmp_path)
    path = tmp_path / fingerprint.FILE
    record = json.loads(path.read_text())
    entry = next(iter(record.values()))
    if damage == "number":
        entry["intensities"][0]["mean"] = "x"
    elif damage == "entry":
        record[next(iter(record))] = 3
    elif damage == "quantiles":
        entry["intensities"][1]["quantiles"].pop()
    path.write_text(json.dumps(record) if damage in ("number", "entry", "quantiles") else damage)
    assert measured(challenge, phantom_folder, folder=tmp_path) == first
    assert len(loads) == 8


def test_all_faulty_cases_are_named_and_the_good_ones_are_remembered(
    challenge, own_phantoms, tmp_path, loads
):
    one, two = sorted(path for path in own_phantoms.iterdir() if path.is_dir())[:2]
    for folder in (one, two):
        next(folder.glob("*_flair.nii.gz")).write_bytes(b"none")
    with pytest.raises(ManyErrors, match="2 of 4 cases cannot be measured") as caught:
        measured(challenge, own_phantoms, folder=tmp_path / "cache")
    assert [name for name, _ in caught.value.failures] == [one.name, two.name]
    loads.clear()
    with pytest.raises(ManyErrors):
        measured(challenge, own_phantoms, folder=tmp_path / "cache")
    assert sorted(loads) == [one.name, two.name]


def test_no_case_is_an_error(challenge):
    with pytest.raises(DataError, match="no labelled case"):
        fingerprint.measure(challenge, [], progress=False)


def test_the_record_is_json_without_the_quantiles(rng):
    found = of_arrays({"a": ball(rng)})
    record = json.loads(json.dumps(found.record()))
    assert record["cases"]["a"]["shape"] == [16, 16, 16]
    assert record["intensities"] == found.intensities()
    assert "quantiles" not in json.dumps(record)
    assert set(record["cases"]["a"]) < {f.name for f in dataclasses.fields(fingerprint.Measured)}
