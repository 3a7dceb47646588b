"""NRRD files: what headers say in many ways, and what is refused."""

import bz2
import gzip
import os
import tracemalloc

import numpy as np
import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import nrrd

VALUES = np.arange(-3, 57, dtype="<i2")
RAW = VALUES.tobytes()
HEADER = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "3 4 5",
    "space directions": "(0.5,0,0) (0,0.75,0) (0,0,2)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(1,2,3)",
}


def named(value):
    """A test's name, which must be one in all processes: gzip writes the time into its bytes."""
    return "voxels" if isinstance(value, bytes) else None


def text(**changes):
    """A header with fields changed ("_" stands for a space), or left out where one is None."""
    fields = HEADER | {name.replace("_", " "): value for name, value in changes.items()}
    lines = "".join(f"{name}: {value}\n" for name, value in fields.items() if value is not None)
    return f"NRRD0004\n# a comment\n{lines}key of mine:=some: text\n"


def write(folder, voxels=RAW, name="a.nrrd", **changes):
    path = folder / name
    path.write_bytes(text(**changes).encode() + b"\n" + voxels)
    return path


def detached(folder, voxels=RAW, data="a.raw", **changes):
    """A header that names the file `a.raw`."""
    (folder / "a.raw").write_bytes(voxels)
    path = folder / "a.nhdr"
    path.write_text(text(data_file=data, **changes))
    return path


def test_voxels_and_place_are_those_of_the_header(tmp_path):
    array, geometry = nrrd.read_nrrd(write(tmp_path))
    np.testing.assert_array_equal(array, VALUES.reshape(5, 4, 3))
    assert array.dtype == geometry.dtype == np.int16 and array.dtype.isnative
    assert geometry.shape == (3, 4, 5) and geometry.spacing_mm == (2.0, 0.75, 0.5)
    np.testing.assert_array_equal(geometry.affine[:3, 3], [-1, -2, 3])


@pytest.mark.parametrize(
    ("encoding", "voxels"),
    [
        ("raw", RAW),
        ("gzip", gzip.compress(RAW)),
        ("gz", gzip.compress(RAW[:50]) + gzip.compress(RAW[50:])),
        ("bzip2", bz2.compress(RAW)),
        ("bz2", bz2.compress(RAW, 1)),
        ("ascii", " ".join(map(str, VALUES)).encode()),
        ("text", "\n".join(map(str, VALUES)).encode() + b"\n"),
        ("TXT", "\t".join(map(str, VALUES)).encode()),
    ],
    ids=named,
)
def test_encodings(tmp_path, encoding, voxels):
    for path in (
        write(tmp_path, voxels, encoding=encoding),
        detached(tmp_path, voxels, encoding=encoding),
        detached(tmp_path, b"one line\nand two\n" + voxels, encoding=encoding, line_skip="2"),
    ):
        np.testing.assert_array_equal(nrrd.read_nrrd(path)[0].ravel(), VALUES)


def test_bytes_before_the_voxels(tmp_path):
    for encoding, pack in (("raw", bytes), ("gzip", gzip.compress), ("bzip2", bz2.compress)):
        path = detached(tmp_path, pack(b"12345678" + RAW), encoding=encoding, byte_skip="8")
        np.testing.assert_array_equal(nrrd.read_nrrd(path)[0].ravel(), VALUES)
    path = detached(tmp_path, b"1234567" + RAW, byte_skip="-1")
    np.testing.assert_array_equal(nrrd.read_nrrd(path)[0].ravel(), VALUES)


@pytest.mark.parametrize(
    ("name", "code"),
    [("uchar", "u1"), ("int8_t", "i1"), ("unsigned short", "u2"), ("signed  int", "i4")]
    + [
        ("uint32", "u4"),
        ("long long", "i8"),
        ("uint64_t", "u8"),
        ("float", "f4"),
        ("double", "f8"),
    ],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_types_and_byte_orders(tmp_path, name, code, order):
    values = np.arange(60).astype(code)
    voxels = values.astype(("<" if order == "little" else ">") + code).tobytes()
    array, _ = nrrd.read_nrrd(write(tmp_path, voxels, type=name, endian=order))
    np.testing.assert_array_equal(array.ravel(), values)
    assert array.dtype == code and array.dtype.isnative
    words = " ".join(map(str, values)).encode()
    array, _ = nrrd.read_nrrd(write(tmp_path, words, type=name, encoding="ascii", endian=None))
    np.testing.assert_array_equal(array.ravel(), values)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("las", (-1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
    ],
)
def test_spaces(tmp_path, space, signs):
    _, geometry = nrrd.read_nrrd(write(tmp_path, space=space))
    np.testing.assert_array_equal(geometry.affine[:3, 3], np.array(signs) * [1, 2, 3])
    np.testing.assert_array_equal(np.diag(geometry.affine)[:3], np.array(signs) * [0.5, 0.75, 2])


@pytest.mark.parametrize("changes", [{"space": None}, {"space": "3D-right-handed"}])
def test_axes_without_a_named_space_are_said(tmp_path, caplog, changes):
    changes = {"space_dimension": "3"} | changes if changes["space"] is None else changes
    path = write(tmp_path, **changes)
    _, geometry = nrrd.read_nrrd(path)
    assert f"{path}: names no anatomical space; its axes are taken for LPS" in caplog.text
    assert geometry.axcodes == "LPS"


def test_spacings_without_directions(tmp_path, caplog):
    changes = {"space_directions": None, "space": None, "space_origin": None}
    path = write(tmp_path, **changes, spacings="0.5 0.75 2")
    assert nrrd.read_nrrd(path)[1].spacing_mm == (2.0, 0.75, 0.5)
    path = write(tmp_path, **changes, spacings="0.5 0.75 2", units='"cm" "cm" "cm"')
    assert nrrd.read_nrrd(path)[1].spacing_mm == (20.0, 7.5, 5.0)
    sizes = {"dimension": "4", "sizes": "2 3 2 5", "kinds": "list domain domain domain"}
    path = write(tmp_path, **changes, spacings="nan 0.5 0.75 2", **sizes)
    array, geometry = nrrd.read_nrrd(path)
    assert array.shape == (5, 2, 3, 2) and geometry.spacing_mm == (2.0, 0.75, 0.5)


def test_lengths_have_units(tmp_path):
    for unit, factor in (("mm", 1), ("cm", 10), ("m", 1000), ("um", 1e-3), ("µm", 1e-3)):
        units = " ".join([f'"{unit}"'] * 3)
        _, geometry = nrrd.read_nrrd(write(tmp_path, space_units=units))
        np.testing.assert_allclose(geometry.affine[:3, 3], np.array([-1, -2, 3]) * factor)
        np.testing.assert_allclose(geometry.spacing_mm, np.array([2, 0.75, 0.5]) * factor, 1e-2)


@pytest.mark.parametrize("at", [0, 3])
def test_the_axis_that_is_not_spatial_is_the_last(tmp_path, at):
    directions = HEADER["space directions"].split()
    directions.insert(at, "none")
    sizes = ["3", "2", "5"]
    sizes.insert(at, "2")
    path = write(
        *(tmp_path, RAW), dimension="4", sizes=" ".join(sizes), kinds=None,
        space_directions=" ".join(directions),
    )  # fmt: skip
    array, geometry = nrrd.read_nrrd(path)
    expected = np.moveaxis(VALUES.reshape([int(n) for n in sizes], order="F"), at, -1)
    np.testing.assert_array_equal(array, expected.transpose(2, 1, 0, 3))
    assert geometry.shape == (3, 2, 5)


def test_line_ends_of_windows(tmp_path):
    path = tmp_path / "a.nrrd"
    path.write_bytes(text().replace("\n", "\r\n").encode() + b"\r\n" + RAW)
    np.testing.assert_array_equal(nrrd.read_nrrd(path)[0].ravel(), VALUES)


@pytest.mark.parametrize(
    ("voxels", "changes", "says"),
    [
        (RAW[:-1], {}, "a.nrrd: holds 119 bytes of voxels, but .*a.nrrd says 3 x 4 x 5"),
        (RAW + b"x", {}, "holds 121 bytes of voxels"),
        (b"", {"sizes": "2000000000 2000000000 2"}, "holds 0 bytes of voxels"),
        (b"", {"sizes": "3 4"}, "sizes: '3 4'; 3 whole numbers"),
        (b"", {"sizes": "3 0 5"}, "sizes: '3 0 5'; 3 whole"),
        (b"", {"sizes": "3 nan 5"}, "3 whole numbers"),
        (b"", {"sizes": "3 1e300 5"}, "3 whole numbers"),
        (b"", {"dimension": "17"}, "dimension: '17'; a whole number from 1 to 16"),
        (b"", {"dimension": None}, "dimension: ''; a whole number"),
        (b"", {"type": "block"}, "type: 'block'; known: signed char, int8"),
        (b"", {"type": None}, "type: ''; known"),
        (b"", {"encoding": "hex"}, "encoding: 'hex'; known: raw, txt"),
        (b"", {"endian": None}, "endian: ''; 'little' or 'big'"),
        (b"", {"space": "right-posterior-superior"}, "space: 'right-posterior-superior'.*known"),
        (b"", {"space": "left-posterior-superior-time"}, "space: 'left-posterior-superior-time'"),
        (b"", {"space_directions": None}, "neither 'space directions' nor 'spacings'"),
        (b"", {"space_directions": None, "spacings": "1 0 1"}, "voxels are .1.0, 0.0, 1.0. mm"),
        (b"", {"space_directions": None, "spacings": "1 1"}, "spacings: '1 1'; 3 are expected"),
        (b"", {"space_directions": "(1,0,0) (0,1,0)"}, "3 vectors or 'none'"),
        (b"", {"space_directions": "(1,0,0) (0,1,0) (0,0)"}, "vectors of 3 numbers"),
        (b"", {"space_directions": "(1,0,0) (0,1,0) (0,0,x)"}, "numbers are expected"),
        (b"", {"space_directions": "(1,0,0) (0,1,0) (0,0,0)"}, "voxels are .1.0, 1.0, 0.0. mm"),
        (b"", {"space_directions": "(1,0,0) (0,1,0) (0,0,inf)"}, "voxels are .1.0, 1.0, inf. mm"),
        (b"", {"space_directions": "(1,0,0) (0,1,0) (0,1,0)"}, "its affine is not invertible"),
        (b"", {"space_directions": "(1,0,0) none none"}, "1 spatial axes and 2 others"),
        (b"", {"space_directions": "(1,0) (0,1) none", "space": "LPS"}, "image of 2 spatial axes"),
        (b"", {"space_origin": "(1,2)"}, "space origin: '.1,2.'; 3 finite numbers"),
        (b"", {"space_origin": "(1,nan,3)"}, "space origin: .*; 3 finite numbers"),
        (b"", {"space_units": '"mm" "mm" "cm"'}, "units: 'cm, mm'; one of mm"),
        (b"", {"space_units": '"inch" "inch" "inch"'}, "units: 'inch'; one of mm"),
        (b"", {"byte_skip": "-2"}, "byte skip: '-2'; a whole number from -1"),
        (b"", {"line_skip": "x"}, "line skip: 'x'; a whole number from 0"),
        (b"", {"byte_skip": "-1", "encoding": "gzip"}, "byte skip: -1; that is for raw voxels"),
        (RAW, {"byte_skip": str(2**62)}, "holds 0 bytes of voxels"),
        (b"x", {"encoding": "gzip"}, "cannot|truncated"),
        (gzip.compress(RAW)[:-5], {"encoding": "gzip"}, "compressed data are truncated"),
        (gzip.compress(RAW + b"x"), {"encoding": "gzip"}, "more bytes than its header promises"),
        (gzip.compress(RAW[1:]), {"encoding": "gzip"}, "holds 119 bytes of voxels"),
        (gzip.compress(RAW), {"encoding": "gzip", "byte_skip": "1"}, "holds 119 bytes"),
        (bz2.compress(RAW)[:-9], {"encoding": "bzip2"}, "compressed data are truncated"),
        (bz2.compress(RAW + b"x"), {"encoding": "bzip2"}, "holds 121 bytes of voxels"),
        (b"x", {"encoding": "bzip2", "sizes": "3 4000 50000"}, "1200000000 bytes, which 1 comp"),
        (b"x", {"encoding": "bzip2"}, "OSError|truncated"),
        (b"1 2 3", {"encoding": "ascii"}, "holds 3 numbers, but .* says 60"),
        (b"1.5 " * 60, {"encoding": "ascii"}, "a.nrrd: .*1.5"),
        (b"70000 " * 60, {"encoding": "ascii"}, "a.nrrd: .*70000"),
    ],
    ids=named,
)
def test_faulty_files_are_named(tmp_path, voxels, changes, says):
    with pytest.raises(DataError, match=says) as raised:
        nrrd.read_nrrd(write(tmp_path, voxels, **changes))
    assert str(tmp_path / "a.nrrd") in str(raised.value)


def test_what_is_no_header_at_all(tmp_path):
    path = tmp_path / "a.nrrd"
    for content, says in (
        (b"", "is not an NRRD file"),
        (b"NRRD\n\n", "is not an NRRD file"),
        (b"NRRD0004\ntype short\n\n", "line 'type short' is not 'name: value'"),
        (b"NRRD0004\ntype: short\n", "its header does not end with an empty line"),
        (b"NRRD0004\ntype: short\ntype: int\n\n", "type: 'int'; but 'short' further up"),
        (b"NRRD0004\n" + b"#" * (2 << 20), "its header does not end with an empty line"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"a.nrrd: {says}"):
            nrrd.read_nrrd(path)


def test_voxels_are_read_from_one_file_beside_the_header_only(tmp_path):
    case = tmp_path / "case"
    case.mkdir()
    (tmp_path / "secret").write_bytes(RAW)
    (case / "own").write_bytes(RAW)
    (case / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(case / "pipe")
    for name, says in (
        ("/etc/passwd", "lies outside"),
        ("../secret", "lies outside"),
        ("link", "lies outside"),
        ("/dev/zero", "lies outside"),
        ("pipe", "is a named pipe"),
        ("no.raw", "there is no such file"),
        (".", "is a folder"),
    ):
        path = detached(case, data=name)
        with pytest.raises(DataError, match=f"{says}.*{path} says that its voxels are there"):
            nrrd.read_nrrd(path)
    for name in ("LIST", "slice%03d.raw 1 3 1", "a\0b"):
        with pytest.raises(DataError, match="a.nhdr: data file: .*one file of voxels is expected"):
            nrrd.read_nrrd(detached(case, data=name))
    for name in ("own", str(case / "own"), "../case/own"):
        np.testing.assert_array_equal(nrrd.read_nrrd(detached(case, data=name))[0].ravel(), VALUES)


def test_no_more_is_read_or_decompressed_than_the_header_says(tmp_path):
    tail = bytes(1 << 28)
    huge = tmp_path / "huge.nrrd"
    huge.write_bytes(text(encoding="gzip").encode() + b"\n")
    with huge.open("r+b") as file:
        file.truncate(1 << 30)
    paths = [
        write(tmp_path, gzip.compress(RAW + tail, 1), name="gz.nrrd", encoding="gzip"),
        write(tmp_path, bz2.compress(RAW + tail[: 1 << 25]), name="bz.nrrd", encoding="bzip2"),
        huge,
    ]
    tracemalloc.start()
    for path in paths:
        with pytest.raises(DataError, match=f"{path.name}: "):
            nrrd.read_nrrd(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_what_cannot_be_written(tmp_path):
    _, geometry = nrrd.read_nrrd(write(tmp_path))
    values = np.zeros((5, 4, 3))
    for array, dtype, name, says in (
        (values[1:], "u1", "b.nrrd", r"has shape \(4, 4, 3\)"),
        (values + 256, "u1", "b.nrrd", "do not fit uint8"),
        (values, "f2", "b.nrrd", "no such type as float16"),
        (values, "u1", "b.raw", "must end in .nrrd or .nhdr"),
        (values, "u1", "a.nrrd/b.nrrd", "cannot be written"),
    ):
        with pytest.raises(DataError, match=says):
            nrrd.write_nrrd(tmp_path / name, array, geometry, dtype)
    assert not (tmp_path / "b.nrrd").exists()
