"""PNG masks: only PNG is decoded, completely, undamaged, and in one size."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import png

SIZE = (20, 30)


@pytest.fixture
def grey(rng):
    return rng.integers(0, 255, SIZE).astype(np.uint8)


def encoded(values, kind="PNG", **options):
    Image.fromarray(values).save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def save(folder, content):
    (folder / "a.png").write_bytes(content)
    return folder / "a.png"


def chunks(*parts):
    joined = b"".join(
        len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + joined


def made(raw, *, size=SIZE, depth=8, colour=0, interlace=0, extra=()):
    """A PNG file of uncompressed rows, each behind its filter's byte."""
    head = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, interlace)
    packed = (b"IDAT", zlib.compress(raw))
    return chunks((b"IHDR", head), *extra, packed, (b"IEND", b""))


def rows(values):
    return b"".join(b"\0" + row.tobytes() for row in values)


def test_pixels_are_those_that_were_written(tmp_path, grey):
    for options in ({}, {"compress_level": 0}, {"optimize": True}):
        path = save(tmp_path, encoded(grey, **options))
        np.testing.assert_array_equal(png.read_grey(path, SIZE), grey)
    path = save(tmp_path, encoded(grey > 100))
    np.testing.assert_array_equal(png.read_grey(path, SIZE), grey > 100)
    np.testing.assert_array_equal(png.read_grey(save(tmp_path, made(rows(grey))), SIZE), grey)


@pytest.mark.parametrize("size", [(20, 30), (1, 1), (3, 2), (8, 9), (5, 1)])
def test_interlaced_files_are_counted_pass_by_pass(tmp_path, rng, size):
    values = rng.integers(0, 255, size).astype(np.uint8)
    passes = [values[0::8, 0::8], values[0::8, 4::8], values[4::8, 0::4], values[0::4, 2::4],
              values[2::4, 0::2], values[0::2, 1::2], values[1::2, :]]  # fmt: skip
    raw = b"".join(rows(part) for part in passes if part.size)
    path = save(tmp_path, made(raw, size=size, interlace=1))
    np.testing.assert_array_equal(png.read_grey(path, size), values)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "EPS", "JPEG", "PPM", "TGA", "ICO"])
def test_other_formats_named_png_are_refused_and_nothing_is_started(
    tmp_path, grey, kind, monkeypatch
):
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("decoded"))
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("started"))
    path = save(tmp_path, encoded(grey, kind))
    with pytest.raises(DataError, match="a.png: is not a PNG file, whatever its name says"):
        png.read_grey(path, SIZE)


@pytest.mark.parametrize("truncated", [False, True])
def test_every_truncation_and_every_flipped_bit_is_noticed(tmp_path, truncated, monkeypatch):
    # Whatever a program has told Pillow.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = encoded(np.arange(600, dtype=np.uint8).reshape(SIZE))
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << (at % 8)
        path = save(tmp_path, content[:at] if truncated else bytes(changed))
        with pytest.raises(DataError, match="a.png: "):
            png.read_grey(path, SIZE)


def test_no_more_is_inflated_than_the_header_promises(tmp_path, grey):
    path = save(tmp_path, made(rows(grey) + bytes(50 << 20)))
    with pytest.raises(DataError, match="a.png: holds more bytes than its header promises"):
        png.read_grey(path, SIZE)
    path = save(tmp_path, made(rows(grey)[:-1]))
    with pytest.raises(DataError, match="a.png: holds fewer pixels"):
        png.read_grey(path, SIZE)
    huge = (30000, 30000)
    with pytest.raises(DataError, match="promises 900030000 bytes"):
        png.read_grey(save(tmp_path, made(rows(grey), size=huge)), huge)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (lambda g: encoded(np.stack([g] * 3, -1)), "mode 'RGB'; a mask is 1-bit or 8-bit grey"),
        (lambda g: encoded(np.stack([g] * 4, -1)), "mode 'RGBA'"),
        (lambda g: encoded(g.astype(np.uint16)), "16-bit grey"),
        (lambda g: encoded(g[:-1]), "has 19 x 30 pixels, but its slice has 20 x 30"),
        (lambda g: made(rows(g), extra=[(b"acTL", bytes(8))]), "several frames"),
        (lambda g: made(rows(g), depth=3), "makes no sense"),
        (lambda g: chunks((b"IEND", b"")), "not with a PNG header"),
        (lambda g: b"", "is not a PNG file"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, grey, content, text):
    with pytest.raises(DataError, match=f"a.png: .*{text}"):
        png.read_grey(save(tmp_path, content(grey)), SIZE)


def test_texts_in_a_mask_are_not_read(tmp_path, grey):
    text = b"a\0\0" + zlib.compress(bytes(100 << 20))
    path = save(tmp_path, made(rows(grey), extra=[(b"zTXt", text)]))
    np.testing.assert_array_equal(png.read_grey(path, SIZE), grey)


def test_real_masks_are_those_that_pillow_reads(shared_data):
    folders = [shared_data / "golden" / "chaos_ct", *shared_data.glob("chaos/**/Ground")]
    paths = [path for folder in folders for path in sorted(folder.glob("*.png"))[::10]]
    assert len(paths) > 10
    for path in paths:
        with Image.open(path) as image:
            expected = np.asarray(image)
        np.testing.assert_array_equal(png.read_grey(path, expected.shape), expected)
