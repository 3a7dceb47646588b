import gzip
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import nifti


def raw_file(path, kind=nib.Nifti1Image, shape=(2, 3, 4), order="<", **fields):
    """A file of the voxels 1, 2, 3, ... whose header says what it is told to say."""
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    voxels = np.arange(1, 1 + np.prod(shape), dtype=np.int16).reshape(shape)
    content = bytearray(kind(voxels, np.eye(4), header).to_bytes())
    size = kind.header_class.sizeof_hdr
    changed = kind.header_class(bytes(content[:size]), endianness=order, check=False)
    for name, value in fields.items():
        changed[name] = value
    content[:size] = changed.binaryblock
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path, voxels


BOTH = pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])


@BOTH
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_file_that_claims_more_than_it_holds_costs_nothing(tmp_path, kind, name):
    for dim in ((3, 16000, 16000, 10), (3, 10000, 10000, 10000), (7, *[30000] * 7)):
        path, _ = raw_file(tmp_path / name, kind, dim=(*dim, *[1] * 7)[:8])
        tracemalloc.start()
        with pytest.raises(DataError, match=f"^{path}: .*promises \\d+.* truncated or damaged"):
            nifti.read_nifti(path, ndim=3 if dim[0] == 3 else 7)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
        tracemalloc.stop()


def test_what_lies_behind_the_voxels_is_not_decompressed(tmp_path):
    path, voxels = raw_file(tmp_path / "a.nii")
    good, bomb = path.read_bytes(), bytes(1 << 28)
    path.write_bytes(gzip.compress(good + bytes(1000)))  # some programs pad
    array, geometry = nifti.read_nifti(path)
    np.testing.assert_array_equal(geometry.from_lps(array), voxels)
    packed = [gzip.compress(good + bomb, 1), gzip.compress(good) + gzip.compress(bomb, 1)]
    for content in (*packed, gzip.compress(good + bytes(1 << 20)), good + bytes(1 << 20)):
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(DataError, match=f"^{path}: .* its header promises"):
            nifti.read_nifti(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()


def test_a_damaged_checksum_behind_the_voxels_is_noticed(tmp_path):
    path, _ = raw_file(tmp_path / "a.nii.gz")
    for place in range(1, 9):  # checksum and length
        content = bytearray(path.read_bytes())
        content[-place] ^= 1
        (tmp_path / "b.nii.gz").write_bytes(content)
        with pytest.raises(DataError, match="b.nii.gz: the compressed data are truncated or"):
            nifti.read_nifti(tmp_path / "b.nii.gz")


@BOTH
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_offset_of_zero_is_the_end_of_the_header(tmp_path, kind, order, caplog):
    for name in ("a.nii", "a.nii.gz"):
        path, voxels = raw_file(tmp_path / name, kind, order=order, vox_offset=0)
        array, geometry = nifti.read_nifti(path)
        np.testing.assert_array_equal(geometry.from_lps(array), voxels)
        first = 352 if kind is nib.Nifti1Image else 544
        assert f"{path}: its vox_offset is 0; the voxels are taken to begin at byte {first}" in (
            caplog.text
        )
    (tmp_path / "b.nii").write_bytes((tmp_path / "a.nii").read_bytes() + b"x")
    with pytest.raises(DataError, match="b.nii: .* bytes, but its header promises"):
        nifti.read_nifti(tmp_path / "b.nii")  # then it is not known where they begin


@pytest.mark.parametrize("offset", [1, 348, 351, -1, -352, 352.5, np.nan, np.inf, 1e30])
def test_an_offset_that_cannot_be(tmp_path, offset):
    path, _ = raw_file(tmp_path / "a.nii", vox_offset=offset)
    with pytest.raises(DataError, match=f"^{path}: .*(vox_offset|truncated)"):
        nifti.read_nifti(path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"scl_slope": np.inf}, "scaled by inf"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "shifted by nan"),
        ({"datatype": 9999}, "cannot be read, the file is truncated or damaged"),
        ({"datatype": 128}, "voxels are of type .*real numbers"),
        ({"dim": [0, 2, 3, 4, 1, 1, 1, 1]}, r"0 axes \(dim\[0\]\)"),
        ({"dim": [3, 2, -3, 4, 1, 1, 1, 1]}, "holds no voxel"),
        ({"magic": b"ni1"}, "header of a pair of files"),
        ({"magic": b"abc"}, "not a NIfTI file"),
        ({"datatype": 2}, "bytes, but its header promises 376"),  # bitpix says 16
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 9}, "cannot be read"),
        ({"sform_code": 0, "qform_code": 1, "qoffset_x": np.nan}, "not invertible"),
    ],
)
def test_headers_that_cannot_be(tmp_path, fields, says, capfd):
    path, _ = raw_file(tmp_path / "a.nii", **fields)
    with pytest.raises(DataError, match=f"^{path}: (?s:.)*{says}"):
        nifti.read_nifti(path)
    assert capfd.readouterr() == ("", "")  # nibabel prints of its own, without a file's name


def test_a_wrong_bitpix_is_said(tmp_path, caplog):
    path, voxels = raw_file(tmp_path / "a.nii", bitpix=8)
    array, geometry = nifti.read_nifti(path)
    np.testing.assert_array_equal(geometry.from_lps(array), voxels)
    assert f"{path}: its bitpix is 8, but its datatype, which is used, is int16" in caplog.text


@pytest.mark.parametrize("slope", [0, np.nan])
def test_a_slope_of_nothing_is_no_scaling(tmp_path, slope):
    path, voxels = raw_file(tmp_path / "a.nii", scl_slope=slope, scl_inter=np.nan)
    array, geometry = nifti.read_nifti(path)
    np.testing.assert_array_equal(geometry.from_lps(array), voxels)
    assert array.dtype == np.int16


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "zero.nii.gz").symlink_to("/dev/zero")
    (tmp_path / "folder.nii").mkdir()
    for name, kind in (
        ("pipe.nii", "named pipe"),
        ("zero.nii.gz", "device"),
        ("folder.nii", "folder"),
    ):
        with pytest.raises(DataError, match=f"^{tmp_path}/{name}: is a {kind}"):
            nifti.read_nifti(tmp_path / name)
