"""Viewer pages: what they hold, and how a browser draws them."""

import base64
import gzip
import io
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from crossdim_jax import challenges
from crossdim_jax.challenges.brats import phantom
from crossdim_jax.errors import DataError
from crossdim_jax.report import viewer

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
TURN = np.array([[0.96, -0.28, 0, 3], [0.28, 0.96, 0, -5], [0, 0, 1, 7], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Files of an oblique case whose axes run to the back, up and to the right; a prediction."""
    root = tmp_path_factory.mktemp("cases")
    phantom.generate(root, 1, shape=(24, 26, 30))
    for path in root.rglob("*.nii.gz"):
        image = nib.load(path)
        turned = image.as_reoriented(
            ornt_transform(io_orientation(image.affine), axcodes2ornt("PSR"))
        )
        data = np.asarray(turned.dataobj)
        nib.Nifti1Image(data, TURN @ turned.affine).to_filename(path)
    challenge = challenges.get("phantom")
    [files] = challenge.cases(root, labelled=True)
    truth, geometry = challenge.read_prediction(files.label)
    predicted = np.roll(truth, 2, axis=1)
    path = challenge.write(root / "prediction.nii.gz", predicted, geometry)
    return challenge, files, path


@pytest.fixture(scope="module")
def page(case, tmp_path_factory):
    challenge, files, prediction = case
    folder = tmp_path_factory.mktemp("pages")
    return viewer.write(viewer.path(folder, "a b"), challenge, files, prediction, scores="Dice 7")


def content(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="case">(.*?)</script>', text, re.DOTALL)[1])


def volume(entry):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(entry["data"])))


def test_a_page_holds_the_voxels_of_the_files_on_their_own_grid(case, page):
    challenge, files, prediction = case
    found = content(page)
    assert [entry["name"] for entry in found["channels"]] == list(challenge.modalities)
    for entry, path in zip(found["channels"], files.images, strict=True):
        image, source = volume(entry), nib.load(path)
        np.testing.assert_array_equal(image.get_fdata(), source.get_fdata())
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-5)
    truth, predicted, differs = map(volume, found["overlays"])
    sources = nib.load(files.label).get_fdata(), nib.load(prediction).get_fdata()
    for overlay, source in zip((truth, predicted), sources, strict=True):
        pairs = np.unique(np.stack([overlay.get_fdata(), source], -1).reshape(-1, 2), axis=0)
        assert len(pairs) > 2  # and each label has a colour of its own:
        assert all(len(set(side)) == len(pairs) for side in pairs.T)
    np.testing.assert_array_equal(differs.get_fdata() > 0, sources[0] != sources[1])


@pytest.mark.parametrize("most", [9000, 400])
def test_what_is_too_large_is_cropped_then_thinned_and_said(
    case, page, tmp_path, monkeypatch, most
):
    challenge, files, prediction = case
    monkeypatch.setattr(viewer, "MARGIN_MM", 1.0)
    part = viewer.write(tmp_path / "part.html", challenge, files, prediction, most=most)
    found, whole = content(part), content(page)
    assert "cropped to" in found["note"] and not whole["note"]
    assert ("along each axis" in found["note"]) == (most == 400)
    image, source = volume(found["channels"][0]), volume(whole["channels"][0])
    assert image.get_fdata().size <= most
    places = np.argwhere(np.ones(image.shape))
    at = nib.affines.apply_affine(np.linalg.inv(source.affine) @ image.affine, places)
    voxels = np.rint(at).astype(int)
    np.testing.assert_allclose(at, voxels, atol=1e-4)
    np.testing.assert_array_equal(image.get_fdata()[*places.T], source.get_fdata()[*voxels.T])
    if most == 9000:
        for part_of, whole_of in zip(found["overlays"], whole["overlays"], strict=True):
            assert volume(part_of).get_fdata().sum() == volume(whole_of).get_fdata().sum()


def test_a_prediction_of_another_grid_is_refused_by_name(case, tmp_path):
    challenge, files, prediction = case
    image = nib.load(prediction)
    nib.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine).to_filename(tmp_path / "p.nii.gz")
    moved = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1, 1, 1, 1]) @ image.affine)
    moved.affine[0, 3] += 9
    moved.to_filename(tmp_path / "moved.nii.gz")
    for name in ("p", "moved"):
        with pytest.raises(DataError, match=rf"{name}\.nii\.gz.*predict the case again"):
            viewer.write(tmp_path / "page.html", challenge, files, tmp_path / f"{name}.nii.gz")


def test_text_of_a_case_cannot_leave_its_place_in_the_page(case, tmp_path):
    challenge, files, prediction = case
    path = viewer.write(
        tmp_path / "page.html", challenge, files, prediction, scores="</p><script>alert(1)</script>"
    )
    assert "<script>alert" not in path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser(page):
    """The page in headless Chromium, and what it asked for and complained of."""
    if CHROMIUM is None:
        pytest.skip("no Chromium to draw the page with")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    flags = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        tab = chromium.new_page(viewport={"width": 1000, "height": 700})
        requests, complaints = [], []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda m: m.type == "error" and complaints.append(m.text))
        tab.goto(page.as_uri())
        tab.wait_for_selector("body[data-ready]", timeout=120_000)
        yield tab, requests, complaints
        chromium.close()


def pixels(tab):
    """The canvas as drawn, (row, column, rgb)."""
    return imread(io.BytesIO(tab.locator("#canvas").screenshot()))[..., :3]


def test_a_browser_draws_the_case_and_asks_for_nothing_else(browser, page):
    tab, requests, complaints = browser
    assert np.ptp(pixels(tab), axis=(0, 1)).min() > 0.3  # not blank
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    assert not complaints


def test_the_value_under_the_cursor_is_that_of_the_file(browser, case):
    tab, _, _ = browser
    source = nib.load(case[1].images[0]).get_fdata()
    box = tab.locator("#canvas").bounding_box()
    tab.get_by_role("button", name="Axial").click()
    voxels = set()
    for x, y in ((0.45, 0.4), (0.5, 0.5), (0.55, 0.62), (0.6, 0.45)):
        tab.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        place = tab.locator("#place")
        voxel = tuple(json.loads(place.get_attribute("data-voxel")))
        assert float(place.get_attribute("data-value")) == source[voxel]
        voxels.add(voxel)
    assert len(voxels) == 4
    tab.get_by_label("Channel").select_option("1")
    tab.get_by_text(" t1 ").and_(place).wait_for(timeout=10_000)  # nothing is evaluated in the page
    other = nib.load(case[1].images[1]).get_fdata()
    assert float(place.get_attribute("data-value")) == other[voxel]
    tab.get_by_label("Channel").select_option("0")
    tab.get_by_text(" flair ").and_(place).wait_for(timeout=10_000)


@pytest.mark.parametrize(
    "name", ["Prediction", pytest.param("Truth", marks=pytest.mark.slow), "Disagreement"]
)
def test_overlays_and_their_labels_are_switched(browser, name):
    tab, _, complaints = browser
    tab.get_by_role("button", name="Planes").click()
    box = tab.locator(f"[data-overlay={name}]")
    before, was = pixels(tab), box.is_checked()
    box.click()
    assert np.abs(pixels(tab) - before).max() > 0.1
    if name != "Disagreement":
        box.set_checked(True)
        shown = pixels(tab)
        for layer in tab.locator("[data-layer]").all():
            layer.uncheck()
        assert np.abs(pixels(tab) - shown).max() > 0.1
        for layer in tab.locator("[data-layer]").all():
            layer.check()
        np.testing.assert_array_equal(pixels(tab), shown)
    box.set_checked(was)
    np.testing.assert_array_equal(pixels(tab), before)
    assert not complaints
