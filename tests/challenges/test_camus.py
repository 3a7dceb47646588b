import csv
import dataclasses
import gzip
import logging
import math

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.challenges.base import Evaluated
from crossdim_jax.challenges.camus import phantom, tables
from crossdim_jax.errors import ConfigError, DataError, ManyErrors
from crossdim_jax.imaging import metaimage, nifti


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """{layout: root} of three patients each, with coarse pixels."""
    return {
        layout: phantom.ensure(
            tmp_path_factory.mktemp(layout) / "p", 3, layout=layout, pixel_mm=1.0, n_frames=3
        )
        for layout in phantom.LAYOUTS
    }


@pytest.fixture
def challenge():
    return challenges.get("camus", size=(64, 64))


def evaluated(challenge, root, folder, change=lambda files, label: label):
    """Every labelled case with its own label, changed, as prediction."""
    found = []
    for files in challenge.cases(root, labelled=True):
        case = challenge.load(files)
        label = change(files, case.label)
        path = challenge.write(challenge.prediction_path(folder, files.id), label, case.geometry)
        row = challenge.score(case.label, label, case.spacing_mm, kind=case.kind)
        found.append(Evaluated(files, row, path))
    return found


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def copied(path, folder, **header):
    """A NIfTI file with header fields changed, beside other files of the same name."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    fields = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in header.items():
        fields[name] = value
    raw[:348] = fields.binaryblock
    target = folder / path.name
    target.write_bytes(gzip.compress(bytes(raw)))
    return target


@pytest.mark.parametrize("layout", phantom.LAYOUTS)
def test_arrays_are_frame_row_column_with_the_spacing_of_the_header(phantoms, challenge, layout):
    files = challenge.cases(phantoms[layout], labelled=True)[0]
    case = challenge.load(files)
    image, label = phantom.film(phantom.patient(0, n_frames=3), "2CH", case.spacing_mm[1:])
    np.testing.assert_array_equal(case.image[..., 0], image[:1])
    np.testing.assert_array_equal(case.label, label[:1])
    assert case.image.dtype == np.float32 and case.kind == "2CH_ED"
    assert case.spacing_mm[1:] == ((1.0, 1.0) if layout == "nifti" else (1.0, 2.0))
    assert not case.geometry.oriented


def test_contours_are_unions_of_labels(challenge):
    label = np.array([[[0, 1, 2, 3]]], np.uint8)
    masks = challenge.masks(label)
    assert challenge.regions == ("LVendo", "LVepi", "LA")
    assert masks[0, 0].T.astype(int).tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    targets, weights = challenge.encode(label)
    np.testing.assert_array_equal(targets[0, 0], np.eye(4))
    assert weights.tolist() == [1, 1, 1, 1]
    colours = {name: colour for name, (_, colour) in challenge.layers(label).items()}
    assert list(colours) == ["LVepi", "LVendo", "LA"]  # the outer contour is drawn first
    red, green, blue = (
        [int(c[i : i + 2], 16) for i in (1, 3, 5)]
        for c in (colours["LVendo"], colours["LA"], colours["LVepi"])
    )
    assert np.argmax(red) == 0 and np.argmax(green) == 1 and np.argmax(blue) == 2


@pytest.mark.parametrize("layout", phantom.LAYOUTS)
def test_a_prediction_comes_back_on_the_native_grid(phantoms, layout):
    for size in ((64, 64), None):
        files = challenges.get("camus").cases(phantoms[layout], labelled=True)[1]
        case = challenges.get("camus").load(files)
        challenge = challenges.get("camus", size=size or case.image.shape[1:3])
        prepared = challenge.prepare(case)
        assert prepared.image.mean() == pytest.approx(0, abs=0.05)
        targets = challenge.encode(prepared.label)[0].astype(np.float32)
        found = challenge.finish(targets, prepared)
        assert found.shape == case.label.shape
        if size is None:
            np.testing.assert_array_equal(found, case.label)  # the identity
        else:
            row = challenge.score(case.label, found, case.spacing_mm)
            assert row["dice_LVendo"] > 0.93 and row["hd_mm_LVendo"] < 5


@pytest.mark.parametrize("layout", phantom.LAYOUTS)
def test_predictions_are_written_as_nifti_and_as_mhd(phantoms, challenge, tmp_path, layout):
    for files in challenge.cases(phantoms[layout], labelled=False)[:3]:
        case = challenge.load(files)
        path = challenge.write(
            challenge.prediction_path(tmp_path, files.id), case.label, case.geometry
        )
        assert path.name == f"{files.id}.nii.gz"
        (exported,) = challenge.export(tmp_path, files, case.label, case.geometry)
        assert exported == tmp_path / "mhd" / f"{files.id}.mhd"
        for label, geometry in (challenge.read_prediction(p) for p in (path, exported)):
            np.testing.assert_array_equal(label, case.label)
            np.testing.assert_allclose(geometry.affine, case.geometry.affine, atol=1e-6)
            assert geometry.dtype == np.uint8
        # As any other program reads it: (width, height[, frames]).
        assert nib.load(path).shape[:2] == case.label.shape[:0:-1]


def test_tables_of_a_perfect_prediction(phantoms, challenge, tmp_path):
    found = evaluated(challenge, phantoms["nifti"], tmp_path)
    table2, table3, patients = challenge.tables(found)
    qualities = ("All", "Good", "Medium", "Poor")
    parts = [(quality, phase) for quality in qualities for phase in ("ED", "ES")]
    assert [row[:2] for row in table2.rows[::3]] == parts
    columns = dict(zip(table2.columns, range(99), strict=False))
    assert all(row[columns["Dice"]] == 1 and row[columns["HD (mm)"]] == 0 for row in table2.rows)
    assert [row[columns["n"]] for row in table2.rows[:3]] == ["6"] * 3
    of_truth = [row for row in table3.rows if row[1] == "truth"]
    assert len(of_truth) == 6 and all(row[4] == pytest.approx(1) for row in of_truth)
    assert all(row[5] == row[7] == 0 for row in of_truth)
    of_cfg = {row[0]: row for row in table3.rows if row[1] == "cfg"}
    assert of_cfg["textbook"][2] == "EF (%)" and of_cfg["textbook"][7] < 3
    assert not any("not known from" in note for note in table3.notes)
    assert len(patients.rows) == 3 and not patients.shown
    assert all(
        len(table.columns) == len(row) for table in (table2, table3, patients) for row in table.rows
    )


def test_the_cohort_says_who_is_not_known_and_why(phantoms, challenge, tmp_path, caplog):
    def change(files, label):
        lost = files.id == "patient0002_4CH_ES"
        return np.where(label == 1, 2, label) if lost else label

    with caplog.at_level(logging.WARNING):
        found = evaluated(challenge, phantoms["nifti"], tmp_path, change)
        table2, table3, patients = challenge.tables(found)
    assert "patient0002: no volumes: 4CH_ES: the mask is empty" in caplog.text
    assert (
        "1 of 3 patients are not known from the prediction: patient0002 (4CH_ES: the mask is "
        in (" ".join(table3.notes))
    )
    assert all(row[3] == "2" and row[-1] == "1" for row in table3.rows)
    es = [row for row in table2.rows if row[:3] == ("All", "ES", "LVendo")]
    assert es[0][-1] == "1" and es[0][4] == pytest.approx(5 / 6)
    assert patients.rows[1][-1].startswith("prediction: 4CH_ES")
    summary = challenge.summarise([case.row for case in found])
    assert summary["hd_mm_LVendo"]["n_nan"] == 1


def test_a_mismatched_prediction_counts_as_not_known(phantoms, challenge, tmp_path):
    found = evaluated(challenge, phantoms["nifti"], tmp_path)
    wrong = [
        dataclasses.replace(case, note="shape") if case.files.patient == "patient0001" else case
        for case in found
    ]
    notes = " ".join(challenge.tables(wrong)[1].notes)
    assert "patient0001 (no prediction on the image's grid)" in notes
    lost = challenge.mismatch(np.zeros((1, 9, 8), np.uint8), (1.0, 1.0, 1.0))
    assert lost["dice_LA"] == 0


def test_groups_are_phase_and_image_quality(phantoms, challenge):
    groups = [challenge.groups(files) for files in challenge.cases(phantoms["mhd"], labelled=True)]
    assert groups[:2] == [("ED", "Image quality Good"), ("ES", "Image quality Good")]
    assert groups[-1] == ("ES", "Image quality Poor")


@pytest.mark.parametrize("layout", phantom.LAYOUTS)
def test_new_patients_get_a_table_of_volumes_and_films_one_of_areas(
    phantoms, challenge, tmp_path, layout
):
    files = challenge.cases(phantoms[layout], labelled=False)
    predicted = [(case, case.label) for case in files]
    patients, films = challenge.export_all(tmp_path, predicted)
    rows = rows_of(patients)
    assert [row["source"] for row in rows] == ["stills"] * 3
    truth = phantom.patient(0, n_frames=3)
    assert float(rows[0]["edv_ml_textbook"]) == pytest.approx(truth.edv_ml, rel=0.05)
    assert {row["frame"] for row in rows_of(films)} == {"1", "2", "3"}
    area = [float(row["cavity_mm2"]) for row in rows_of(films)][:3]
    assert area[0] > area[1] > area[2]


def test_films_alone_give_volumes_by_the_frames_of_their_cfg(phantoms, tmp_path, caplog):
    challenge = challenges.get("camus", frames="half_sequence")
    films = challenge.cases(phantoms["nifti"], labelled=True)
    stills = challenges.get("camus").cases(phantoms["nifti"], labelled=True)
    found = {}
    for name, cases in (("films", films), ("stills", stills)):
        paths = challenge.export_all(tmp_path / name, [(case, case.label) for case in cases])
        found[name] = rows_of(paths[0])
    assert [row.pop("source") for row in found["films"]] == ["half_sequence"] * 3
    assert [row.pop("source") for row in found["stills"]] == ["stills"] * 3
    assert found["films"] == found["stills"] and not caplog.text
    assert challenge.groups(films[0]) == ("half_sequence", "Image quality Good")


def test_a_film_without_a_usable_cfg_says_how_its_frames_were_chosen(tmp_path, caplog):
    root = phantom.ensure(tmp_path / "p", 4, pixel_mm=1.0, n_frames=3)
    folder = root / "database_nifti" / "patient0004"  # runs backwards
    (folder / "Info_2CH.cfg").unlink()
    (folder / "Info_4CH.cfg").write_text("ED: 30\nES: 1\n")
    challenge = challenges.get("camus", frames="half_sequence")
    films = [(c, c.label) for c in challenge.cases(folder, labelled=True)]
    paths = challenge.export_all(tmp_path, films)
    (row,) = rows_of(paths[0])
    truth = phantom.patient(3, n_frames=3)
    assert float(row["edv_ml_textbook"]) == pytest.approx(truth.edv_ml, rel=0.06)
    assert "patient0004_2CH_half_sequence: no cfg names ED and ES" in row["note"]
    assert "its cfg names frames 30 and 1 of 3; they are taken where the cavity" in row["note"]
    assert "no cfg names" in caplog.text


def test_a_plain_folder_of_images_is_predicted_without_volumes(tmp_path, rng):
    challenge = challenges.get("camus", size=(32, 32))
    film = nib.Nifti1Image(
        rng.integers(0, 255, (30, 20, 4)).astype(np.uint8), np.diag([-0.4, -0.4, 1, 1])
    )
    nib.save(film, tmp_path / "cine.nii.gz")
    (case,) = challenge.cases(tmp_path / "cine.nii.gz", labelled=False)
    loaded = challenge.load(case)
    assert loaded.image.shape == (4, 20, 30, 1) and challenge.groups(case) == ()
    assert challenge.prepare(loaded).image.shape == (4, 32, 32, 1)
    label = np.zeros((4, 20, 30), np.uint8)
    challenge.export(tmp_path, case, label, loaded.geometry)
    path = challenge.write(tmp_path / "out" / "cine.nii.gz", label, loaded.geometry)
    (films,) = challenge.export_all(tmp_path, [(case, path)])
    assert films.name == "films.csv"
    np.testing.assert_allclose(nib.load(path).affine, film.affine, atol=1e-6)


def test_masks_of_another_size_and_unknown_values(phantoms, challenge, tmp_path):
    files = challenge.cases(phantoms["nifti"], labelled=True)[0]
    case = challenge.load(files)
    smaller = nib.Nifti1Image(case.label[0].T[:-3].copy(), np.eye(4))
    nib.save(smaller, tmp_path / "smaller_gt.nii.gz")
    with pytest.raises(
        DataError, match=r"smaller_gt.nii.gz: has 182 x 150 .* has 185 x 150 pixels"
    ):
        challenge.load(dataclasses.replace(files, label=tmp_path / "smaller_gt.nii.gz"))
    coarser = copied(
        files.label, tmp_path, pixdim=[1, 1.5, 1, 1, 1, 1, 1, 1], sform_code=0, qform_code=1
    )
    with pytest.raises(
        DataError, match=r"voxels of 1.5 x 1 x 1 mm instead of 1 x 1 x 1\); at most 0.05 mm"
    ):
        challenge.load(dataclasses.replace(files, label=coarser))
    five = nifti.write_nifti(tmp_path / "five.nii.gz", case.label + 2, case.geometry)
    with pytest.raises(DataError, match=r"five.nii.gz: holds the values \[4, 5\]; labels of CAMUS"):
        challenge.load(dataclasses.replace(files, label=five))
    with pytest.raises(DataError, match="holds the values"):
        challenge.write(tmp_path / "a.nii.gz", case.label + 2, case.geometry)


FLIPPED, SHIFTED = np.diag([-1.0, 1, 1, 1]), np.eye(4)
FLIPPED[0, 3], SHIFTED[1, 3] = 149, 4
TURNED = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("change", [FLIPPED, SHIFTED, TURNED], ids=["flip", "origin", "turn"])
@pytest.mark.parametrize("layout", phantom.LAYOUTS)
def test_a_label_elsewhere_than_its_image_is_refused(phantoms, tmp_path, layout, change):
    challenge = challenges.get("camus", size=(64, 64))
    files = challenge.cases(phantoms[layout], labelled=True)[0]
    case = challenge.load(files)
    geometry = nifti.Geometry.from_affine(
        files.label, case.geometry.shape, change @ case.geometry.affine, np.uint8, oriented=False
    )
    if layout == "nifti":
        moved = nifti.write_nifti(tmp_path / "moved_gt.nii.gz", case.label, geometry)
    else:
        moved = metaimage.write_mhd(tmp_path / "moved_gt.mhd", case.label, geometry)
    other = dataclasses.replace(files, label=moved)
    with pytest.raises(DataError, match=r"moved_gt.*farthest voxel [\d.]+ mm from .*2CH_ED"):
        challenge.load(other)
    challenge.grid_tolerance_mm = 1000.0
    np.testing.assert_array_equal(challenge.load(other).label, case.label)


def test_pixels_that_are_no_numbers_are_counted(phantoms, challenge, tmp_path):
    files = challenge.cases(phantoms["nifti"], labelled=True)[0]
    case = challenge.load(files)
    for value in (np.nan, np.inf, 1e300):
        image = case.image[..., 0].astype(np.float64)
        image[0, 3, 4] = value
        path = nifti.write_nifti(tmp_path / "a.nii.gz", image, case.geometry, np.float64)
        with pytest.raises(DataError, match="a.nii.gz: 1 of [0-9]+ voxels are NaN or infinite"):
            challenge.load(dataclasses.replace(files, images=(path,)))


@pytest.mark.parametrize("pixdim", [[1, 0, 0, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1, 1, 1]])
def test_a_spacing_that_is_absent_or_zero(phantoms, challenge, tmp_path, pixdim):
    files = challenge.cases(phantoms["nifti"], labelled=True)[0]
    path = copied(files.images[0], tmp_path, pixdim=pixdim, sform_code=0, qform_code=0)
    with pytest.raises(
        DataError, match="2CH_ED.nii.gz: its header gives a pixel size of .* positive"
    ):
        challenge.load(dataclasses.replace(files, images=(path,)))
    header = phantoms["mhd"] / "training/patient0001/patient0001_2CH_ED.mhd"
    broken = tmp_path / "patient0001_2CH_ED.mhd"
    broken.write_text(header.read_text().replace("ElementSpacing", "Elementspacing"))
    with pytest.raises(DataError, match="2CH_ED.mhd: has no ElementSpacing"):
        challenge.load(dataclasses.replace(files, images=(broken,)))


def test_an_mhd_whose_raw_is_short(phantoms, challenge, tmp_path):
    files = challenge.cases(phantoms["mhd"], labelled=True)[0]
    for suffix in (".mhd", ".raw"):
        source = files.images[0].with_suffix(suffix)
        (tmp_path / source.name).write_bytes(source.read_bytes())
    raw = tmp_path / "patient0001_2CH_ED.raw"
    raw.write_bytes(raw.read_bytes()[:1000])
    with pytest.raises(DataError, match="patient0001_2CH_ED.raw: holds 1000 bytes"):
        challenge.load(dataclasses.replace(files, images=(raw.with_suffix(".mhd"),)))


def test_incomplete_patients_are_all_named(tmp_path, challenge):
    root = phantom.ensure(tmp_path, 3, pixel_mm=2.0, n_frames=2)
    for path in (root / "database_nifti/patient0001").glob("*_4CH_*"):
        path.unlink()
    (root / "database_nifti/patient0003/patient0003_2CH_ES.nii.gz").unlink()
    with pytest.raises(ManyErrors) as caught:
        challenge.cases(root, labelled=True)
    assert [patient for patient, _ in caught.value.failures] == ["patient0001", "patient0003"]
    errors = []
    assert len(challenge.cases(root, labelled=True, errors=errors)) == 4 and len(errors) == 2


def test_settings_that_are_unknown():
    for field in ("frames", "mad"):
        with pytest.raises(ConfigError, match=f"{field}='x' is unknown; known: "):
            challenges.get("camus", **{field: "x"})
    masd = challenges.get("camus", mad="masd")
    assert masd.profile == "camus_masd" and challenges.get("camus").profile == "camus"
    assert masd.fingerprint() == challenges.get("camus").fingerprint()  # the cache is the same
    assert masd.fingerprint() != challenges.get("camus", size=(64, 64)).fingerprint()


def test_no_two_patients_are_needed_for_a_table(phantoms, challenge, tmp_path):
    found = evaluated(challenge, phantoms["nifti"], tmp_path)[:4]
    _, table3, _ = challenge.tables(found)
    assert all(row[4] is None and row[3] == "1" for row in table3.rows)
    assert math.isnan(tables.biplane.agreement([1.0], [1.0])["sd"])


def test_figures_are_made_of_evaluated_cases(phantoms, challenge, tmp_path):
    figures = challenge.figures(evaluated(challenge, phantoms["mhd"], tmp_path))
    assert [name for name, *_ in figures] == ["phases", "volumes"]
    assert (
        "patient0002, the median of 3 patients" in figures[0][2] or "median of 3" in figures[0][2]
    )
    assert challenge.figures([]) == []


def test_the_real_cine_is_read_as_frames(shared_data):
    challenge = challenges.get("camus")
    (case,) = challenge.cases(shared_data / "echo" / "a4c_sequence.nii.gz", labelled=False)
    loaded = challenge.load(case)
    assert loaded.image.shape == (20, 480, 560, 1)
    assert loaded.spacing_mm[1:] == pytest.approx((0.4, 0.4))
    assert loaded.image[0, :30, :200].max() < 60 < loaded.image[0, 100:300, 200:400].max()


def test_mhd_labels_are_read_as_predictions(phantoms, challenge):
    files = challenge.cases(phantoms["mhd"], labelled=True)[0]
    np.testing.assert_array_equal(
        challenge.read_prediction(files.label)[0], metaimage.read_mhd(files.label)[0]
    )
