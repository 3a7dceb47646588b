"""Data sets in formats that other programs leave behind: DICOM, Analyze, detached NRRD."""

import re

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.imaging import metaimage, nrrd, volume
from tests import dataset_folders as folders
from tests import dicom_files

SLICES = np.random.default_rng(0).integers(0, 900, (3, 8, 9)).astype(np.uint16)


def challenge(root, **settings):
    return challenges.get("dataset", root=str(root), **settings)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_channel_may_be_a_folder_of_dicom_slices(tmp_path, channels):
    root = folders.nnunet(tmp_path, ("a", "b"), channels)
    for path in (root / "imagesTr").iterdir():
        path.unlink()
        name = path.name.removesuffix(".nii.gz")
        dicom_files.write(root / "imagesTr" / name, SLICES + int(name[-1]))
    image, geometry = volume.read_image(root / "imagesTr/a_0000")
    for case in ("a", "b"):
        volume.write_label(root / "labelsTr" / f"{case}.nii.gz", image % 3 // 1, geometry)
    ours = challenge(root)
    cases = ours.cases(root, labelled=True)
    assert [path.name for path in cases[1].images] == [f"b_{c:04d}" for c in range(channels)]
    case = ours.load(cases[0])
    for c in range(channels):
        np.testing.assert_array_equal(case.image[..., c], image + c)
    assert case.spacing_mm == (dicom_files.STEP_MM, 2.0, 1.5)
    path = ours.prediction_path(tmp_path / "out", "a")
    ours.write(path, case.label, case.geometry)
    np.testing.assert_allclose(nib.load(path).affine, nib.load(cases[0].label).affine)
    new = ours.cases(root / "imagesTr", labelled=False)
    assert [c.id for c in new] == ["a", "b"]
    np.testing.assert_array_equal(ours.load(new[0]).image, case.image)


def test_a_folder_of_loose_slices_is_one_case_to_predict(tmp_path):
    ours = challenge(folders.nnunet(tmp_path / "data"))
    dicom_files.write(tmp_path / "series 7", SLICES)
    (case,) = ours.cases(tmp_path / "series 7", labelled=False)
    assert case.id == "series 7" and ours.load(case).image.shape == (3, 8, 9, 1)


def test_a_series_with_a_gap_is_refused_by_name(tmp_path):
    ours = challenge(folders.nnunet(tmp_path / "data"))
    paths = dicom_files.write(tmp_path / "new/c", np.concatenate([SLICES, SLICES]))
    paths[2].unlink()
    (case,) = ours.cases(tmp_path / "new", labelled=False)
    with pytest.raises(DataError, match=r"new/c/slice3\.dcm: lies 8 mm .* 1 missing there"):
        ours.load(case)


def test_analyze_is_read_only_with_the_order_of_its_axes(tmp_path):
    root = folders.nnunet(tmp_path, ("a",), file_ending=".hdr")
    values = {"images": folders.image(), "labels": folders.label(1, 2).astype(np.int16)}
    for folder, array in values.items():
        (path,) = (root / f"{folder}Tr").glob("a*.nii.gz")
        image = nib.AnalyzeImage(array, None)
        image.header.set_zooms((1.0, 1.2, 2.0))
        nib.save(image, path.with_name(path.name.replace(".nii.gz", ".hdr")))
        path.unlink()
    ours = challenge(root)
    (files,) = ours.cases(root, labelled=True)
    with pytest.raises(DataError, match=r"a_0000\.hdr: .*--config\.challenge\.analyze_axes=LAS"):
        ours.load(files)
    said = challenge(root, analyze_axes="LAS")
    case = said.load(files)
    assert case.geometry.axcodes == "LAS" and case.spacing_mm == (2.0, 1.2, 1.0)
    np.testing.assert_array_equal(case.image[..., 0], values["images"].transpose(2, 1, 0)[:, ::-1])
    assert said.prediction_path(tmp_path / "out", "a").name == "a.nii.gz"
    assert said.fingerprint() != ours.fingerprint()
    with pytest.raises(ConfigError, match="analyze_axes is 'LLS'"):
        challenge(root, analyze_axes="LLS")


@pytest.mark.parametrize(("ending", "voxels"), [(".nhdr", ".raw.gz"), (".mhd", ".zraw")])
def test_a_header_and_its_voxels_may_be_links_to_another_folder(tmp_path, ending, voxels):
    write = nrrd.write_nrrd if ending == ".nhdr" else metaimage.write_mhd
    root = folders.nnunet(tmp_path / "data", ("a", "b"), file_ending=ending)
    store, images = tmp_path / "store", root / "imagesTr"
    store.mkdir()
    kept = {}
    for path in sorted(root.rglob("*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        array, geometry = volume.read_image(path)
        kept[name] = array
        options = {"compressed": True} if ending == ".mhd" else {}
        write(store / f"{name}{ending}", array, geometry, np.int16, **options)
        folder = path.parent
        path.unlink()
        (folder / f"{name}{ending}").symlink_to(store / f"{name}{ending}")
        if name.startswith("b"):  # of a, the headers alone are linked
            (folder / f"{name}{voxels}").symlink_to(store / f"{name}{voxels}")
    ours = challenge(root)
    for case in map(ours.load, ours.cases(root, labelled=True)):
        np.testing.assert_array_equal(case.image[..., 0], kept[f"{case.id}_0000"])
        np.testing.assert_array_equal(case.label, kept[case.id])
    # No header leads away from its folder, whoever linked it.
    text = (store / f"a{ending}").read_text().replace(f"a{voxels}", f"../a{voxels}")
    (store / f"a{ending}").write_text(text)
    (store / f"a{voxels}").rename(tmp_path / f"a{voxels}")
    with pytest.raises(DataError, match=f"a{voxels}: lies outside"):
        ours.load(ours.cases(root, labelled=True)[0])
    # Nor does a link that came with the header instead of being made to it.
    (images / f"b_0000{ending}").unlink()
    (images / f"b_0000{ending}").write_bytes((store / f"b_0000{ending}").read_bytes())
    with pytest.raises(DataError, match=f"b_0000{voxels}: lies outside"):
        ours.load(ours.cases(root, labelled=True)[1])


@pytest.mark.parametrize("form", ["folders", "decathlon"])
def test_predictions_end_as_the_labels_do_where_nothing_says_an_ending(tmp_path, form):
    root = folders.decathlon(tmp_path)
    for path in sorted((root / "labelsTr").iterdir()):
        label, geometry = volume.read_label(path)
        path.unlink()
        volume.write_label(path.with_name(path.name.replace(".nii.gz", ".nrrd")), label, geometry)
    text = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(re.sub(r"(labelsTr/t_\d)\.nii\.gz", r"\1.nrrd", text))
    if form == "folders":
        (root / "dataset.json").unlink()
    ours = challenge(root)
    assert ours.prediction_path("out", "t_1").name == "t_1.nrrd"
    again = challenges.get("dataset", described=ours.description.record())
    assert again.prediction_path("out", "t_1").name == "t_1.nrrd"
