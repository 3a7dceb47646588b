import gzip
import itertools
import os

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import nifti

ALL_48 = [
    (permutation, signs)
    for permutation in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def save(path, array, affine=None, **fields):
    image = nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1]) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def oriented(permutation, signs, spacing=(1.1, 1.3, 1.7), shape=(3, 4, 5)):
    """A volume whose voxels hold a code of their world position, stored in a given orientation.

    spacing and shape are those of world axes x, y, z.
    """
    disk_shape = [shape[world] for world in permutation]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(zip(permutation, signs, strict=True)):
        affine[world, axis] = sign * spacing[world]
        if sign < 0:
            affine[world, 3] = spacing[world] * (shape[world] - 1)
    index = np.stack(np.meshgrid(*map(np.arange, disk_shape), indexing="ij"), axis=-1)
    position = index @ affine[:3, :3].T + affine[:3, 3]
    steps = np.rint(position / spacing).astype(np.int16)  # RAS voxel coordinates
    return steps @ np.array([1, 10, 100], np.int16), affine


@pytest.mark.parametrize(("permutation", "signs"), ALL_48)
def test_every_orientation_reads_the_same_and_writes_back_exactly(tmp_path, permutation, signs):
    disk, affine = oriented(permutation, signs)
    path = save(tmp_path / "a.nii.gz", disk, affine)
    array, geometry = nifti.read_nifti(path)
    # In LPS, x and y count down the RAS coordinate and z counts up.
    z, y, x = np.meshgrid(np.arange(5), np.arange(4), np.arange(3), indexing="ij")
    np.testing.assert_array_equal(array, (2 - x) + 10 * (3 - y) + 100 * z)
    assert geometry.spacing_mm == pytest.approx((1.7, 1.3, 1.1))
    assert geometry.shape_zyx == (5, 4, 3)
    assert geometry.axcodes == "".join(nib.aff2axcodes(affine))

    back = nib.load(nifti.write_nifti(tmp_path / "b.nii.gz", array, geometry, np.int16))
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), disk)
    np.testing.assert_array_equal(back.affine, nib.load(path).affine)


def test_channels_stay_last(tmp_path, rng):
    disk, affine = oriented((2, 0, 1), (1, -1, -1))
    channels = rng.integers(0, 99, (*disk.shape, 2)).astype(np.int16)
    channels[..., 0] = disk
    array, geometry = nifti.read_nifti(save(tmp_path / "a.nii", channels, affine), ndim=4)
    assert array.shape == (5, 4, 3, 2)
    np.testing.assert_array_equal(geometry.from_lps(array), channels)
    np.testing.assert_array_equal(array[..., 0], geometry.to_lps(disk))


def test_oblique_affine_codes_and_units_are_kept(tmp_path):
    angle = np.deg2rad(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    sform, qform = np.eye(4), np.eye(4)
    sform[:3, :3], sform[:3, 3] = turn * [0.9, 1.1, 2.0], [3.25, -7, 11]
    qform[:3, :3], qform[:3, 3] = turn * [0.9, 1.1, 2.0], [-4, 5.5, 0]
    source = nib.Nifti1Image(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), sform)
    source.set_sform(sform, code=4)
    source.set_qform(qform, code=2)
    source.header.set_xyzt_units("mm", "sec")
    nib.save(source, tmp_path / "a.nii.gz")

    array, geometry = nifti.read_nifti(tmp_path / "a.nii.gz")
    path = nifti.write_nifti(tmp_path / "b.nii.gz", array, geometry)
    before, after = nib.load(tmp_path / "a.nii.gz"), nib.load(path)
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(after.get_sform(), before.get_sform())
    np.testing.assert_array_equal(after.get_qform(), before.get_qform())
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert after.header[field] == before.header[field]
    assert after.get_data_dtype() == np.uint8
    assert geometry.spacing_mm == pytest.approx((2.0, 1.1, 0.9))


def test_a_file_without_codes_keeps_its_placement(tmp_path, rng):
    header = nib.Nifti1Header()
    header.set_data_shape((2, 3, 4))
    header.set_zooms((1, 2, 3))
    disk = rng.integers(0, 9, (2, 3, 4)).astype(np.uint8)
    nib.save(nib.Nifti1Image(disk, None, header), tmp_path / "a.nii")
    array, geometry = nifti.read_nifti(tmp_path / "a.nii")
    back = nib.load(nifti.write_nifti(tmp_path / "b.nii", array, geometry))
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), disk)
    np.testing.assert_array_equal(back.affine, nib.load(tmp_path / "a.nii").affine)
    assert back.header["sform_code"] == back.header["qform_code"] == 0


def test_spacing_is_in_millimetres_whatever_the_units(tmp_path):
    path = save(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8), np.diag([500.0, 700, 900, 1]))
    image = nib.load(path)
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "b.nii")
    assert nifti.read_nifti(tmp_path / "b.nii")[1].spacing_mm == (0.9, 0.7, 0.5)


def test_header_scaling_is_applied(tmp_path):
    image = nib.Nifti1Image(np.linspace(-3, 7, 24).reshape(2, 3, 4), np.eye(4))
    image.set_data_dtype(np.int16)  # nibabel stores integers with a slope and an intercept
    nib.save(image, tmp_path / "a.nii.gz")
    array, geometry = nifti.read_nifti(tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").dataobj.slope != 1
    np.testing.assert_allclose(geometry.from_lps(array), image.get_fdata(), atol=1e-3)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_nifti_1_and_2_of_both_byte_orders(tmp_path, kind, byte_order):
    disk = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    header = kind.header_class(endianness=byte_order)
    header.set_data_dtype(np.int16)
    nib.save(kind(disk, np.diag([1.0, 2, 3, 1]), header), tmp_path / "a.nii")
    array, geometry = nifti.read_nifti(tmp_path / "a.nii")
    np.testing.assert_array_equal(geometry.from_lps(array), disk)
    back = nib.load(nifti.write_nifti(tmp_path / "b.nii", array, geometry, np.int16))
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), disk)
    np.testing.assert_array_equal(back.affine, np.diag([1.0, 2, 3, 1]))


def test_compression_is_recognised_by_content(tmp_path):
    save(tmp_path / "a.nii", np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    plain = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(plain)
    (tmp_path / "c.nii").write_bytes(gzip.compress(plain))
    expected, _ = nifti.read_nifti(tmp_path / "a.nii")
    for name in ("b.nii.gz", "c.nii"):
        np.testing.assert_array_equal(nifti.read_nifti(tmp_path / name)[0], expected)


def damage(kind, path, rng):
    """Overwrites a good file so that it is damaged in one way."""
    raw = path.read_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) * 3 // 4] ^= 0x10
    path.write_bytes(
        {
            "zero bytes": b"",
            "text": b"this is no image at all " * 40,
            "truncated": raw[: len(raw) // 2],
            "last byte lost": raw[:-1],
            "one bit flipped": bytes(flipped),
            "header only": gzip.compress(gzip.decompress(raw)[:352]),
        }[kind]
    )


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("zero bytes", "empty"),
        ("text", "not a NIfTI file"),
        ("truncated", "truncated or damaged"),
        ("last byte lost", "truncated or damaged"),
        ("one bit flipped", "truncated or damaged"),
        ("header only", "truncated or damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, rng, kind, says):
    path = save(tmp_path / "scan.nii.gz", rng.integers(0, 999, (9, 8, 7)).astype(np.int16))
    damage(kind, path, rng)
    with pytest.raises(DataError, match=says) as error:
        nifti.read_nifti(path)
    assert str(path) in str(error.value)


def test_a_truncated_uncompressed_file_is_named(tmp_path, rng):
    path = save(tmp_path / "scan.nii", rng.integers(0, 999, (9, 8, 7)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="scan.nii: .*truncated or damaged"):
        nifti.read_nifti(path)


def test_missing_file_and_degenerate_affine(tmp_path):
    with pytest.raises(DataError, match="nowhere.nii: there is no such file"):
        nifti.read_nifti(tmp_path / "nowhere.nii")
    path = save(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8))
    image = nib.load(path)
    image.header["srow_z"] = 0
    with open(tmp_path / "b.nii", "wb") as file:
        file.write(image.header.binaryblock + b"\0" * 4 + b"\1" * 24)
    with pytest.raises(DataError, match="b.nii: its affine is not invertible"):
        nifti.read_nifti(tmp_path / "b.nii")


def test_rank_is_checked_and_a_trailing_axis_of_one_is_dropped(tmp_path):
    volume = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    save(tmp_path / "one.nii", volume[..., None])
    save(tmp_path / "two.nii", np.stack([volume, volume], axis=-1))
    save(tmp_path / "three.nii", volume)
    expected, _ = nifti.read_nifti(tmp_path / "three.nii")
    np.testing.assert_array_equal(nifti.read_nifti(tmp_path / "one.nii")[0], expected)
    with pytest.raises(DataError, match=r"two.nii: has shape \(2, 3, 4, 2\), but one 3-D"):
        nifti.read_nifti(tmp_path / "two.nii")
    with pytest.raises(DataError, match=r"three.nii: has shape \(2, 3, 4\), but one 4-D"):
        nifti.read_nifti(tmp_path / "three.nii", ndim=4)


def test_colour_and_complex_voxels_are_refused(tmp_path):
    save(tmp_path / "a.nii", np.ones((2, 3, 4), np.complex64))
    with pytest.raises(DataError, match="a.nii: voxels are of type complex64"):
        nifti.read_nifti(tmp_path / "a.nii")


def test_labels_may_be_whole_numbers_of_any_type(tmp_path, rng):
    label = rng.integers(0, 5, (2, 3, 4))
    scaled = nib.Nifti1Image(label.astype(np.float64), np.eye(4))
    scaled.set_data_dtype(np.int16)
    nib.save(scaled, tmp_path / "scaled.nii")
    for dtype in (np.uint8, np.int16, np.float32, np.float64):
        save(tmp_path / f"{np.dtype(dtype)}.nii", label.astype(dtype), np.eye(4))
    for path in tmp_path.glob("*.nii"):
        array, geometry = nifti.read_label(path)
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(geometry.from_lps(array), label)


@pytest.mark.parametrize("value", [1.5, -1.0, 256.0, np.nan])
def test_other_labels_are_refused(tmp_path, value):
    label = np.ones((2, 3, 4), np.float32)
    label[0, 0, 0] = value
    with pytest.raises(DataError, match="a.nii: 1 voxels are not whole numbers"):
        nifti.read_label(save(tmp_path / "a.nii", label))


def test_what_does_not_fit_is_not_written(tmp_path):
    array, geometry = nifti.read_nifti(save(tmp_path / "a.nii", np.ones((2, 3, 4), np.int16)))
    with pytest.raises(DataError, match=r"b.nii: .* \(3, 3, 4\).*a.nii has \(4, 3, 2\)"):
        nifti.write_nifti(tmp_path / "b.nii", np.zeros((3, 3, 4), np.uint8), geometry)
    with pytest.raises(DataError, match="b.nii: the values 300 to 300 do not fit uint8"):
        nifti.write_nifti(tmp_path / "b.nii", array * 300, geometry)
    with pytest.raises(DataError, match="must end in .nii"):
        nifti.write_nifti(tmp_path / "b.img", array, geometry)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    array, geometry = nifti.read_nifti(save(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8)))
    nifti.write_nifti(tmp_path / "b.nii.gz", array, geometry)
    before = (tmp_path / "b.nii.gz").read_bytes()

    def full(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nifti.nib, "save", full)
    with pytest.raises(DataError, match="b.nii.gz: cannot be written .*No space left"):
        nifti.write_nifti(tmp_path / "b.nii.gz", array, geometry)
    assert (tmp_path / "b.nii.gz").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "b.nii.gz"]


def test_what_a_power_failure_could_leave_is_on_the_disk_before_it_has_the_name(
    tmp_path, monkeypatch
):
    array, geometry = nifti.read_nifti(save(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8)))

    def full(_):
        assert len(list(tmp_path.glob(".*.tmp.nii.gz"))) == 1  # what a stop removes
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="b.nii.gz: cannot be written .*No space left"):
        nifti.write_nifti(tmp_path / "b.nii.gz", array, geometry)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    array, geometry = nifti.read_nifti(save(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8)))
    with pytest.raises(DataError, match="a.nii/b.nii: cannot be written"):
        nifti.write_nifti(tmp_path / "a.nii" / "b.nii", array, geometry)


def test_a_real_label_comes_back_as_it_was(tmp_path, shared_data):
    path = shared_data / "brats2021/BraTS2021_06692/BraTS2021_06692_seg.nii.gz"
    array, geometry = nifti.read_label(path)
    back = nib.load(nifti.write_nifti(tmp_path / "b.nii.gz", array, geometry))
    source = nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), np.asanyarray(source.dataobj))
    np.testing.assert_array_equal(back.affine, source.affine)
    for field in ("sform_code", "qform_code", "xyzt_units", "dim", "datatype"):
        np.testing.assert_array_equal(back.header[field], source.header[field])
    np.testing.assert_array_equal(back.header["pixdim"][:4], source.header["pixdim"][:4])
    assert array.shape == (155, 240, 240)
    # Axial slices as a radiologist sees them: LPS is how this file is stored.
    np.testing.assert_array_equal(array[70], np.asanyarray(source.dataobj)[:, :, 70].T)


def test_a_film_keeps_its_axes_and_comes_back(tmp_path, rng):
    """(column, row, frame) on disk is (frame, row, column) in memory, whatever the affine says."""
    film = rng.integers(0, 4, (7, 5, 3)).astype(np.uint8)
    affine = np.diag([0.3, 0.2, 1, 1])  # RAS: to LPS two axes would turn round
    path = save(tmp_path / "film.nii", film, affine)
    array, geometry = nifti.read_label(path, reorient=False)
    np.testing.assert_array_equal(array, film.transpose(2, 1, 0))
    assert geometry.spacing_mm == (1.0, 0.2, 0.3) and not geometry.oriented
    back = nib.load(nifti.write_nifti(tmp_path / "back.nii", array, geometry))
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), film)
    np.testing.assert_array_equal(back.affine, nib.load(path).affine)
    assert not np.array_equal(nifti.read_label(path)[0], array)


def test_a_single_image_is_a_film_of_one_frame(tmp_path):
    image = np.arange(12, dtype=np.int16).reshape(4, 3)
    array, geometry = nifti.read_nifti(save(tmp_path / "a.nii", image), reorient=False)
    np.testing.assert_array_equal(array, image.T[None])
    assert geometry.shape == (4, 3, 1)


@pytest.mark.parametrize("oriented", [True, False])
def test_a_geometry_that_never_was_nifti_writes_nifti(tmp_path, oriented):
    affine = np.array([[0, 0, 2.0, 5], [-0.7, 0, 0, 9], [0, 0.6, 0, -4], [0, 0, 0, 1]])
    made = nifti.Geometry.from_affine(
        tmp_path / "series", (5, 6, 7), affine, np.int16, oriented=oriented
    )
    sizes = {True: (0.6, 0.7, 2.0), False: (2.0, 0.6, 0.7)}
    assert made.spacing_mm == sizes[oriented]
    array = np.arange(210, dtype=np.int16).reshape(made.shape_zyx)
    path = nifti.write_nifti(tmp_path / "a.nii.gz", array, made, np.int16)
    again, geometry = nifti.read_nifti(path, reorient=oriented)
    np.testing.assert_array_equal(again, array)
    np.testing.assert_allclose(geometry.affine, affine, atol=1e-5)
