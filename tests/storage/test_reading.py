"""The gate for files: regular files only, no more bytes than promised, errors name the file."""

import gzip
import os
import tracemalloc
import zlib

import numpy as np
import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.storage import reading

DATA = np.random.default_rng(0).bytes(3000) + bytes(200_000)
PACKED = {
    "gzip": gzip.compress(DATA),
    "zlib": zlib.compress(DATA),
    "deflate": zlib.compress(DATA)[2:-4],
}


@pytest.mark.parametrize("form", PACKED)
def test_inflates_in_pieces(form):
    stream = reading.Inflater("x", PACKED[form], form)
    assert stream.read(348) + stream.read(len(DATA) - 348) == DATA
    stream.finish()


def test_reads_members_one_after_another_and_padding_behind_them():
    packed = gzip.compress(DATA[:1000]) + bytes(7) + gzip.compress(DATA[1000:]) + bytes(512)
    stream = reading.Inflater("x", packed, "gzip")
    assert stream.read(len(DATA)) == DATA
    stream.finish()


@pytest.mark.parametrize("form", PACKED)
def test_every_cut_is_noticed(form):
    for size in range(len(PACKED[form])):
        with pytest.raises(DataError, match="^x: .*(truncated|damaged)"):
            stream = reading.Inflater("x", PACKED[form][:size], form)
            stream.read(len(DATA))
            stream.finish()


def test_a_damaged_bit_is_noticed_where_gzip_notices_it():
    """As gzip itself, which does not heed a few bytes of a member's header."""
    for place in range(0, len(PACKED["gzip"])):
        packed = bytearray(PACKED["gzip"])
        packed[place] ^= 4
        try:
            sound = gzip.decompress(packed) == DATA
        except (OSError, EOFError, zlib.error):
            sound = False
        try:
            stream = reading.Inflater("x", packed, "gzip")
            found = stream.read(len(DATA))
            stream.finish()
        except DataError:
            assert not sound
        else:
            assert sound and found == DATA


def test_stops_at_what_was_promised():
    packed = gzip.compress(bytes(1 << 28))
    tracemalloc.start()
    stream = reading.Inflater("x", packed, "gzip")
    assert stream.read(100) == bytes(100)
    with pytest.raises(DataError, match="^x: holds more bytes than its header promises"):
        stream.finish(slack=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_short_stream_of_zeros_is_whole_whatever_may_follow_it():
    for form, packed in (
        ("gzip", gzip.compress(bytes(2000))),
        ("zlib", zlib.compress(bytes(2000))),
    ):
        stream = reading.Inflater("x", packed, form)
        assert stream.read(2000) == bytes(2000)
        stream.finish(slack=1 << 16)


def test_what_cannot_be_there_is_refused_before_it_is_made():
    with pytest.raises(DataError, match="^x: its header promises 10{12} bytes"):
        reading.Inflater("x", PACKED["zlib"], "zlib").read(10**12)


def test_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (
        (tmp_path / "pipe", "a named pipe"),
        ("/dev/zero", "a device"),
        (tmp_path, "a folder"),
        (tmp_path / "none", "no such file"),
    ):
        with pytest.raises(DataError, match=f"^{path}: .*{kind}"):
            reading.read_bytes(path)


def test_files_inside_a_folder(tmp_path):
    (tmp_path / "case").mkdir()
    (tmp_path / "other").write_bytes(b"secret")
    (tmp_path / "case/link").symlink_to(tmp_path / "other")
    (tmp_path / "case/own").write_bytes(b"voxels")
    (tmp_path / "case/alias").symlink_to("own")
    inside = tmp_path / "case"
    assert reading.read_bytes(inside / "alias", inside=inside) == b"voxels"
    for path in (inside / "link", inside / "../other", tmp_path / "other"):
        with pytest.raises(DataError, match="lies outside"):
            reading.read_bytes(path, inside=inside)


def test_a_limit_names_both_sizes(tmp_path):
    (tmp_path / "file").write_bytes(bytes(11))
    with pytest.raises(DataError, match="file: has 11 bytes, expected at most 10"):
        reading.read_bytes(tmp_path / "file", limit=10)
    assert reading.read_bytes(tmp_path / "file", limit=11) == bytes(11)


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), OSError("odd"), MemoryError(), RecursionError(), PermissionError(13, "no")],
)
def test_every_error_names_the_file(error):
    with pytest.raises(DataError, match="^brain.nii: .*a NIfTI volume is expected"):
        with reading.naming("brain.nii", "a NIfTI volume"):
            raise error
