import logging
import math

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.metrics import biplane


def ventricle(half_width_mm, *, apex_mm=60.0, base_mm=30.0, spacing_mm=(0.5, 0.5), tilt=0.0):
    """A truncated half ellipse, apex up: at z from the widest point its half width is
    half_width_mm sqrt(1 - (z / apex_mm)^2), for z from -apex_mm to base_mm."""
    size = 140.0
    shape = [round(size / s) for s in spacing_mm]
    row, column = (
        (np.arange(n) + 0.5) * s - size / 2 for n, s in zip(shape, spacing_mm, strict=True)
    )
    row, column = np.meshgrid(row, column, indexing="ij")
    z = np.cos(tilt) * row - np.sin(tilt) * column
    x = np.sin(tilt) * row + np.cos(tilt) * column
    return (z <= base_mm) & ((z / apex_mm) ** 2 + (x / half_width_mm) ** 2 <= 1)


def true_ml(b1, b2, apex_mm=60.0, base_mm=30.0):
    return (
        math.pi * b1 * b2 * (base_mm + apex_mm - (base_mm**3 + apex_mm**3) / (3 * apex_mm**2))
    ) / 1000


def as_disks_ml(b1, b2, first, wider_px=0.0, pixel_mm=0.5, apex_mm=60.0, base_mm=30.0):
    """What disks first, ..., 19 of 20 make of the ellipsoid, each as wide as at its lower end.

    wider_px: added to every diameter.
    """
    z = base_mm - (base_mm + apex_mm) * np.arange(first, 20) / 20
    shape = np.sqrt(1 - (z / apex_mm) ** 2)
    products = (2 * b1 * shape + wider_px * pixel_mm) * (2 * b2 * shape + wider_px * pixel_mm)
    return float(math.pi / 4 * products.sum() * (base_mm + apex_mm) / 20 / 1000)


def patient(ed=(24.0, 20.0), es=(17.0, 14.0), es_scale=1.0, **shape):
    masks = {}
    for phase, pair in (("ED", ed), ("ES", es)):
        scale = 1.0 if phase == "ED" else es_scale
        for view, width in zip(("2CH", "4CH"), pair, strict=True):
            mask = ventricle(width, apex_mm=60.0 * scale, base_mm=30.0 * scale, **shape)
            masks[f"{view}_{phase}"] = (mask, shape.get("spacing_mm", (0.5, 0.5)))
    return masks


def test_golden(shared_data):
    image = nib.load(shared_data / "echo/segmentation_reference.nii.gz")
    label, spacing = np.asarray(image.dataobj).T, image.header.get_zooms()[1::-1]
    ed, es = (label[24] == 1, spacing), (label[10] == 1, spacing)
    found, why = biplane.biplane({"2CH_ED": ed, "4CH_ED": ed, "2CH_ES": es, "4CH_ES": es})
    assert found["camus_official"] == biplane.Volumes(52, 37, 29) and not why
    textbook = found["textbook"]
    assert textbook.edv_ml == pytest.approx(52, abs=0.5)
    assert textbook.ef_percent > 32  # its systolic disks are not as high as the diastolic ones


@pytest.mark.parametrize("tilt", [0.0, 0.2, -0.3])
@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5), (0.25, 0.5), (0.5, 0.25)])
def test_a_truncated_ellipsoid_has_its_analytic_volume(spacing_mm, tilt):
    """Within the method's own error, which is known exactly.

    The disk at the base may or may not be seen: its diameter runs along the mask's edge. Diameters
    are 0 to 1.5 pixels too long, by the steps of half a pixel and the pixels' own edges. The axis
    is uncertain by a pixel at each end.
    """
    found, _ = biplane.biplane(patient(spacing_mm=spacing_mm, tilt=tilt))
    pixel = min(spacing_mm)
    axis = 2 * pixel / 90.0
    for phase, pair in (("edv_ml", (24.0, 20.0)), ("esv_ml", (17.0, 14.0))):
        measured = getattr(found["textbook"], phase)
        low = as_disks_ml(*pair, 1) * (1 - axis)
        high = as_disks_ml(*pair, 0, 1.5, pixel) * (1 + axis)
        assert low < true_ml(*pair) < high
        assert low < measured < high, phase
        assert measured == pytest.approx(true_ml(*pair), rel=0.03)
    ef = 100 * (1 - 17 * 14 / (24 * 20))
    assert found["textbook"].ef_percent == pytest.approx(ef, abs=1.5)
    assert found["camus_official"].ef_percent == pytest.approx(ef, abs=2)


def test_the_methods_differ_in_the_height_of_disks_and_in_rounding():
    masks = patient(es_scale=0.8)
    found, _ = biplane.biplane(masks)
    official, textbook = found["camus_official"], found["textbook"]
    lengths = {name: biplane.disks(*pair).length_mm for name, pair in masks.items()}
    taller = max(lengths.values()) / max(lengths["2CH_ES"], lengths["4CH_ES"])
    assert taller == pytest.approx(1.25, rel=0.02)
    assert official.esv_ml == round(textbook.esv_ml * taller)
    assert official.edv_ml == round(textbook.edv_ml)
    assert official.ef_percent == round(100 * (1 - official.esv_ml / official.edv_ml))


def test_the_axis_goes_from_the_base_to_the_apex():
    found = biplane.disks(ventricle(24.0), (0.5, 0.5))
    middle, apex = found.axis_px * found.pixel_mm - 70
    assert middle == pytest.approx((30, 0), abs=1)
    assert apex[0] == pytest.approx(-60, abs=0.5)
    assert abs(apex[1]) < 3  # along the apex, half a pixel down is 2.2 mm across
    assert found.length_mm == pytest.approx(90, abs=1.5)
    assert found.diameters_mm[1] == pytest.approx(48 * math.sqrt(1 - (25.5 / 60) ** 2), abs=1)


def test_outlines_start_at_the_top_and_the_topmost_comes_first():
    mask = np.zeros((12, 14), bool)
    mask[5:9, 2:6] = True
    mask[2:4, 8:10] = True
    first, second = biplane.outlines(mask)
    assert first[:, 0].min() == 1.5 and second[:, 0].min() == 4.5
    for line in (first, second):
        np.testing.assert_array_equal(line[0], line[-1])
        assert line[0, 0] == line[:, 0].min()
        np.testing.assert_allclose(np.hypot(*np.diff(line, axis=0).T), 1, atol=0.3)
    corner = np.zeros((6, 6), bool)
    corner[2, 2] = corner[3, 3] = True  # pixels that meet in a corner are apart
    assert len(biplane.outlines(corner)) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda masks: masks.pop("4CH_ES"), "4CH_ES is not there"),
        (lambda masks: masks["2CH_ED"][0].fill(False), "2CH_ED: the mask is empty"),
        (lambda masks: masks["2CH_ED"][0].fill(True), "2CH_ED: the mask fills the image"),
    ],
)
def test_without_a_base_volumes_are_unknown_with_a_warning(caplog, change, says):
    masks = patient(spacing_mm=(1.0, 1.0))
    change(masks)
    with caplog.at_level(logging.WARNING):
        found, why = biplane.biplane(masks, "patient0007")
    assert why == says and f"patient0007: no volumes: {says}" in caplog.text
    assert all(math.isnan(v.edv_ml) and math.isnan(v.ef_percent) for v in found.values())


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_tiny_masks_never_crash(shape):
    with pytest.raises(biplane.NoBase):
        biplane.disks(np.ones(shape, bool), (1.0, 1.0))


def test_odd_masks_give_a_number_or_no_base(rng):
    for _ in range(60):
        mask = rng.random((20, 24)) > rng.uniform(0.1, 0.97)
        try:
            found = biplane.disks(mask, (0.7, 1.0))
        except biplane.NoBase:
            continue
        assert np.isfinite(found.diameters_mm).all() and found.length_mm > 0


def test_agreement_by_hand():
    reference, measured = [50.0, 60.0, 70.0, math.nan], [52.0, 59.0, 73.0, 10.0]
    found = biplane.agreement(reference, measured)
    sd = math.sqrt(((2 - 4 / 3) ** 2 + (-1 - 4 / 3) ** 2 + (3 - 4 / 3) ** 2) / 2)
    assert found == pytest.approx(
        {
            "n": 3,
            "n_nan": 1,
            "r": float(np.corrcoef(reference[:3], measured[:3])[0, 1]),
            "bias": 4 / 3,
            "sd": sd,
            "mae": 2.0,
            "low": 4 / 3 - 1.96 * sd,
            "high": 4 / 3 + 1.96 * sd,
        }
    )


def test_agreement_of_too_little():
    for pair in (([], []), ([math.nan], [1.0]), ([50.0], [51.0]), ([50.0, 50.0], [51.0, 53.0])):
        assert math.isnan(biplane.agreement(*pair)["r"])
    assert biplane.agreement([50.0], [51.0])["bias"] == 1 and biplane.agreement([], [])["n"] == 0
