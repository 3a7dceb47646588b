"""PNG, JPEG, BMP and TIFF files as images and label maps."""

import json
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import grid, pictures, volume
from crossdim_jax.imaging.geometry import Geometry

TYPES = {"u1": 255, "u2": 65535, "i2": 32767, "f4": 1000}


def grid_of(shape, spacing=(1.0, 1.0, 1.0)):
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    return Geometry.from_affine("source", shape[::-1], affine, np.uint8, oriented=False)


def save(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp", ".PNG"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_colours_are_the_last_axis(tmp_path, rng, suffix, shape):
    if suffix == ".bmp" and shape[-1] == 4:
        return  # BMP as Pillow writes it has no fourth
    values = rng.integers(0, 255, shape).astype(np.uint8)
    array, geometry = volume.read_image(save(tmp_path / f"a{suffix}", values))
    assert array.dtype == np.float32 and geometry.shape_zyx == (1, 5, 7) and not geometry.oriented
    np.testing.assert_array_equal(array[0], values)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_page_for_each_slice(tmp_path, rng, dtype):
    values = rng.integers(0, TYPES[dtype], (3, 5, 7)).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "a.tif"))
    array, geometry = volume.read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(array, values)
    assert geometry.shape_zyx == (3, 5, 7)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_pages_may_be_compressed(tmp_path, rng, compression):
    values = rng.integers(0, 9, (3, 5, 7)).astype(np.uint8)
    first, *others = [Image.fromarray(page) for page in values]
    options = {"save_all": True, "append_images": others, "compression": compression}
    first.save(tmp_path / "a.tif", **options)
    np.testing.assert_array_equal(volume.read_image(tmp_path / "a.tif")[0], values)


def test_16_bit_grey_png(tmp_path, rng):
    values = rng.integers(0, 65535, (5, 7)).astype(np.uint16)
    np.testing.assert_array_equal(volume.read_image(save(tmp_path / "a.png", values))[0][0], values)


def test_jpeg_is_an_image_but_no_label_map(tmp_path):
    smooth = np.add.outer(np.arange(32), np.arange(48)).astype(np.uint8)
    path = save(tmp_path / "a.jpg", np.stack([smooth] * 3, -1), quality=95)
    array, _ = volume.read_image(path)
    np.testing.assert_allclose(array[0], np.stack([smooth] * 3, -1), atol=4)
    with pytest.raises(DataError, match="a.jpg: is a JPEG, whose compression changes values"):
        volume.read_label(path)


def test_a_palette_is_a_label_map_but_no_image(tmp_path, rng):
    values = rng.integers(0, 4, (5, 7)).astype(np.uint8)
    for suffix in (".png", ".tif", ".bmp"):
        picture = Image.fromarray(values)
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
        picture.save(tmp_path / f"a{suffix}")
        label, _ = volume.read_label(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(label[0], values)
        with pytest.raises(DataError, match=f"a{suffix}.*mode 'P'"):
            volume.read_image(tmp_path / f"a{suffix}")


def test_one_bit_is_0_and_1(tmp_path, rng):
    values = rng.integers(0, 2, (5, 7)).astype(bool)
    for suffix in (".png", ".bmp"):
        label, _ = volume.read_label(save(tmp_path / f"a{suffix}", values))
        np.testing.assert_array_equal(label[0], values)


def test_a_label_that_says_no_size_lies_on_the_image_that_does(tmp_path, caplog):
    image, other, label = (tmp_path / name for name in ("a/c_0000.png", "b/c_0000.png", "c/c.png"))
    for path in (image, other, label):
        path.parent.mkdir()
        save(path, np.zeros((5, 7), np.uint8))
    for path, spacing in ((image, "5, 0.8, 0.8"), (other, "5, 0.7, 0.8")):
        path.with_name("c.json").write_text(f'{{"spacing": [{spacing}]}}')
    geometry = volume.read_image(image)[1]
    grid.check_same(geometry, volume.read_label(label)[1])
    assert "no CASE.json" not in caplog.text
    with pytest.raises(DataError, match="voxels of 0.8 x 0.7 x 5 mm instead"):
        grid.check_same(geometry, volume.read_label(other)[1])
    save(label, np.zeros((5, 6), np.uint8))
    with pytest.raises(DataError, match=r"c\.png: has shape \(6, 5, 1\)"):
        grid.check_same(geometry, volume.read_label(label)[1])


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_spacing_stands_beside_it(tmp_path, suffix, caplog):
    values = np.zeros((5, 7), np.uint8)
    image, label = (save(tmp_path / f"{name}{suffix}", values) for name in ("c_0001", "c"))
    assert volume.read_image(image)[1].spacing_mm == (1.0, 1.0, 1.0)
    assert f"{tmp_path}: its {suffix} files have no CASE.json with a spacing" in caplog.text
    (tmp_path / "c.json").write_text('{"spacing": [3.5, 0.5, 0.25]}')
    for path in (image, label):
        geometry = volume.read_label(path)[1]
        assert geometry.spacing_mm == (3.5, 0.5, 0.25)
    for text in (
        *("[1]", "{}", "x", "[" * 9999, '{"spacing": "111"}', '{"spacing": [1, 1]}'),
        *('{"spacing": [1, 0, 1]}', '{"spacing": [1, NaN, 1]}', '{"spacing": [1e9, 1, 1]}'),
    ):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(DataError, match="c.json: |voxels are"):
            volume.read_image(image)


def test_a_label_map_takes_its_spacing_along(tmp_path, rng):
    label = rng.integers(0, 5, (3, 5, 7))
    geometry = grid_of(label.shape, (3.5, 0.5, 0.25))
    path = volume.write_label(tmp_path / "new" / "a.tif", label, geometry)
    assert json.loads(path.with_suffix(".json").read_text()) == {"spacing": [3.5, 0.5, 0.25]}
    read, of_label = volume.read_label(path)
    np.testing.assert_array_equal(read, label)
    np.testing.assert_allclose(of_label.affine, geometry.affine)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(expected, label)
    with pytest.raises(DataError, match="a.png: a PNG holds one slice, but this is a volume of 3"):
        volume.write_label(tmp_path / "a.png", label, geometry)
    plain = volume.write_label(tmp_path / "b.png", label[:1], grid_of((1, 5, 7)))
    assert not plain.with_suffix(".json").exists()


def turned(path, values):
    exif = Image.Exif()
    exif[274] = 6
    return save(path, values, exif=exif)


def pages(path, *values):
    first, *others = [Image.fromarray(page) for page in values]
    first.save(path, save_all=True, append_images=others)
    return path


GREY = np.arange(35, dtype=np.uint8).reshape(5, 7)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f: turned(f / "a.jpg", GREY), "stored turned or mirrored .orientation 6"),
        (lambda f: turned(f / "a.tif", GREY), "stored turned or mirrored .orientation 6"),
        (lambda f: pages(f / "a.tif", GREY, GREY[1:]), "page 2 is 4 x 7 of mode L, the first is 5"),
        (lambda f: pages(f / "a.tif", GREY, GREY * 1.0), "page 2 is 5 x 7 of mode F, the first is"),
        (lambda f: save(f / "a.tif", GREY, format="PNG"), "is not a TIFF file, whatever its name"),
        (lambda f: save(f / "a.png", GREY, format="BMP"), "is not a PNG file, whatever its name"),
        (lambda f: save(f / "a.jpg", GREY, format="TIFF"), "is not a JPEG file"),
        (
            lambda f: save(f / "a.tif", GREY, tiffinfo={270: "ImageJ=1.5\nimages=9\n"}),
            "promises more pages than the 1",
        ),
        (lambda f: save(f / "a.tif", GREY, tiffinfo={262: 0}), "its smallest value is white"),
        (
            lambda f: Image.fromarray(GREY).convert("CMYK").save(f / "a.jpg") or f / "a.jpg",
            "is of mode 'CMYK'",
        ),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path, make, says):
    path = make(tmp_path)
    with pytest.raises(DataError, match=f"{path.name}:? .*{says}"):
        volume.read_image(path)


def test_16_bit_colours_are_not_cut(tmp_path):
    image = sitk.GetImageFromArray(np.full((5, 7, 3), 4000, np.uint16), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "a.png"))
    with pytest.raises(DataError, match="a.png: has 16 bits for each colour"):
        volume.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp"])
def test_truncated_files_are_named(tmp_path, rng, suffix):
    values = rng.integers(0, 255, (20, 30)).astype(np.uint8)
    content = save(tmp_path / f"a{suffix}", values).read_bytes()
    for size in range(0, len(content) - 20, 13):
        (tmp_path / f"a{suffix}").write_bytes(content[:size])
        with pytest.raises(DataError, match=f"a{suffix}: "):
            volume.read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("size", [12_000, 60_000])
def test_no_more_is_decoded_than_the_file_can_hold(tmp_path, size):
    content = bytearray(save(tmp_path / "a.jpg", GREY).read_bytes())
    at = content.index(b"\xff\xc0") + 5  # rows and columns in the header of the frame
    content[at : at + 4] = size.to_bytes(2) * 2
    (tmp_path / "a.jpg").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=f"a.jpg: (1 pages of 12000 x|.*{size**2} pixels. exceeds)"):
        volume.read_image(tmp_path / "a.jpg")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_other_endings_are_told_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="a.gif: is no picture by its name; known endings: .png"):
        pictures.read(tmp_path / "a.gif")
