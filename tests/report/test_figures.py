import numpy as np
import pytest

from crossdim_jax.challenges.brats.challenge import COLOURS
from crossdim_jax.report import figures

REGIONS = ("WT", "TC", "ET")


def layers(targets):
    """Disjoint, as those of BraTS."""
    whole, core, enhancing = np.moveaxis(targets.astype(bool), -1, 0)
    parts = (whole & ~core, enhancing, core & ~enhancing)
    return {n: (m, COLOURS[n]) for n, m in zip(COLOURS, parts, strict=True)}


def nothing(shape=(12, 20, 16)):
    return layers(np.zeros((*shape, 3), np.uint8))


def subject(shape=(12, 20, 16), spacing=(1.0, 1.0, 1.0), **changes):
    z, y, x = np.indices(shape)
    image = np.zeros((*shape, 2), np.float32)
    image[1:-1, 1:-1, 1:-1] = 100 + (x + y)[1:-1, 1:-1, 1:-1, None]
    truth = np.zeros((*shape, 3), np.uint8)
    truth[3:9, 4:12, 3:11, 0] = 1
    truth[4:8, 5:9, 4:9, 1] = 1
    truth[5:7, 6:8, 5:8, 2] = 1
    values = {
        "title": "Best",
        "caption": "case\nWT 1",
        "image": image,
        "modalities": ("t2", "t1ce"),
        "truth": layers(truth),
        "prediction": layers(truth.copy()),
        "spacing_mm": spacing,
    }
    return figures.Subject(**values | changes)


def pixels(figure, axes):
    """RGB of one axes' own area."""
    figure.set_dpi(100)
    figure.canvas.draw()
    canvas = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    box = axes.get_position()
    rows, columns = canvas.shape[:2]
    top, bottom = int((1 - box.y1) * rows) + 1, int((1 - box.y0) * rows)
    return canvas[top:bottom, int(box.x0 * columns) + 1 : int(box.x1 * columns)].astype(int)


def coloured(figure, axes):
    rgb = pixels(figure, axes)
    return int((rgb.max(-1) - rgb.min(-1) > 40).sum())


def test_contours_leave_the_inside_of_a_structure_as_it_is():
    filled, outlined = (figures.panel([subject(outline=o)]) for o in (False, True))
    assert 50 < coloured(outlined, outlined.axes[2]) < 0.5 * coloured(filled, filled.axes[2])


def test_images_outside_a_patient_have_no_sides():
    figure = figures.panel([subject(oriented=False)])
    assert not figure.axes[0].texts


def test_views_show_the_patient_as_a_radiologist_expects():
    """Right at the left edge, anterior at the top or left, superior at the top."""
    volume = np.zeros((5, 6, 7), int)
    right, anterior, superior = 0, 0, 4  # LPS arrays: x to the left, y to the back, z up
    volume[superior, anterior, right] = 1
    axial = figures.plane(volume, "Axial", superior)
    sagittal = figures.plane(volume, "Sagittal", right)
    coronal = figures.plane(volume, "Coronal", anterior)
    assert (axial.shape, sagittal.shape, coronal.shape) == ((6, 7), (5, 6), (5, 7))
    for view, picture in (("Axial", axial), ("Sagittal", sagittal), ("Coronal", coronal)):
        assert picture[0, 0] == 1, view
        left, _, top, _ = figures.VIEWS[view][1]
        assert left + top == {"Axial": "RA", "Sagittal": "AS", "Coronal": "RS"}[view]


def test_window_ignores_the_background():
    channel = np.zeros(10_000)
    channel[:100] = np.arange(100, 200)
    assert figures.window(channel) == pytest.approx((100.99, 198.01))
    assert figures.window(np.zeros(5)) == (0, 1)
    low, high = figures.window(np.ones(5))
    assert high > low


@pytest.mark.parametrize(
    "names,expected",
    [
        (("flair", "t1", "t1ce", "t2"), (3, 2)),
        (("t2f", "t1n", "t1c", "t2w"), (3, 2)),
        (("FLAIR", "T1w", "T1gd", "T2w"), (3, 2)),
        (("flair", "t1ce"), (0, 1)),
        (("us",), (0,)),
    ],
)
def test_modalities_by_name_or_the_first_two(names, expected):
    assert figures.pick_modalities(names) == expected


def test_largest_slice():
    mask = np.zeros((4, 5, 6), bool)
    mask[1, 2:4, :] = mask[3, 0, 5] = True
    assert [figures.largest_slice(mask, axis) for axis in range(3)] == [1, 2, 5]
    assert figures.largest_slice(mask & False, 0) is None


def test_panel_has_four_columns_and_overlays_only_where_there_is_something():
    empty = subject(prediction=nothing())
    figure = figures.panel([subject(), empty])
    assert [a.get_title() for a in figure.axes[:4]] == [
        "T2",
        "T1ce",
        "Truth on T1ce",
        "Prediction on T1ce",
    ]
    counts = [coloured(figure, axes) for axes in figure.axes]
    assert counts[0] == counts[1] == counts[4] == counts[5] == 0
    assert min(counts[2], counts[3], counts[6]) > 500
    assert counts[7] == 0
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["Edema", "Enhancing tumour", "Necrosis / non-enhancing"]
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert shown == set("RLAP")


@pytest.mark.parametrize("truth", ["some", "none"])
def test_the_slice_is_the_truths_largest_or_else_the_predictions(truth):
    case = subject(truth=nothing(), prediction=nothing())
    case.prediction["Edema"][0][2, 5:9, 5:9] = True
    if truth == "some":
        case.truth["Edema"][0][8, 5:8, 5:8] = True
    look = figures._Look.of(case, "Axial")
    assert look.index == {"some": 8, "none": 2}[truth]


def test_pixels_keep_the_proportions_of_the_spacing():
    figure = figures.views(subject(shape=(12, 40, 30), spacing=(3.0, 0.8, 1.0)))
    sizes = {}
    for view, axes in zip(figures.VIEWS, figure.axes[::4], strict=True):
        left, right, bottom, top = axes.images[0].get_extent()
        sizes[view] = (bottom - top) / (right - left)
        assert axes.get_aspect() == 1
    # the brain fills all but one voxel at each side, and the margin shows that one
    assert sizes["Sagittal"] == pytest.approx(12 * 3 / (40 * 0.8))
    assert sizes["Coronal"] == pytest.approx(12 * 3 / 30)
    assert sizes["Axial"] == pytest.approx(40 * 0.8 / 30)


def test_a_prediction_that_cannot_be_shown_says_why():
    figure = figures.panel([subject(prediction=None, why="not on the grid")])
    assert figure.axes[3].texts[0].get_text() == "not on the grid"
    assert coloured(figure, figure.axes[3]) == 0


def test_outside_the_brain_is_black_whatever_the_intensities():
    image = subject().image
    shifted = np.where(image != 0, image - 120, 0)
    for case in (subject(), subject(image=shifted)):
        figure = figures.panel([case])
        rgb = pixels(figure, figure.axes[1])
        assert rgb[2, 2].max() == 0 and rgb[len(rgb) // 2, 40].max() > 0


def test_curves_show_every_region_and_survive_gaps(tmp_path):
    train = [
        {"epoch": i / 10, "loss": None if i == 3 else 1 / (i + 1), "learning_rate": 1e-3}
        | {f"dice_{r}": i / 200 for r in REGIONS}
        for i in range(200)
    ]
    validation = [{"epoch": 5.0, "dice_WT": 0.5}]
    figure = figures.curves(train, validation, REGIONS)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["Training loss", "Learning rate", "Dice WT", "Dice TC", "Dice ET"]
    assert len(figure.axes[0].lines[0].get_xdata()) == 199
    figures.save(figure, tmp_path / "figures" / "curves.png")
    assert (tmp_path / "figures/curves.png").stat().st_size > 10_000
    assert (tmp_path / "figures/curves.pdf").read_bytes().startswith(b"%PDF")
    assert len(figures.curves(train[:1], [], ()).axes) == 2
