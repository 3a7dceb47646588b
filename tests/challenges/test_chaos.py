"""CHAOS as a challenge: what is annotated, tasks, submission, segmentations for viewers."""

import dataclasses
import math
import shutil

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from configs import brats_dxnet, camus_omnianet, chaos_omnianet
from crossdim_jax import challenges, losses
from crossdim_jax.challenges.base import Evaluated
from crossdim_jax.challenges.chaos import phantom, tables
from crossdim_jax.challenges.chaos import submission as chaos_submission
from crossdim_jax.challenges.chaos.challenge import Chaos, largest_pieces
from crossdim_jax.errors import ConfigError, DataError, ManyErrors
from crossdim_jax.imaging import dicom, nifti
from crossdim_jax.run import experiment

ORGANS = ("liver", "right kidney", "left kidney", "spleen")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return phantom.ensure(tmp_path_factory.mktemp("chaos"), 2, size=48)


@pytest.fixture(scope="module")
def chaos():
    return Chaos((48, 48))


@pytest.fixture(scope="module")
def files(root, chaos):
    return {case.id: case for case in chaos.cases(root, labelled=True)}


def test_a_case_is_the_phantom_it_was_written_from(chaos, files):
    for case, kind, number in (("CT_1", "CT", 0), ("MR_1_T1DUAL_OutPhase", "T1DUAL", 1)):
        loaded = chaos.load(files[case])
        rng = np.random.default_rng([0, 0, number])
        volumes, label = phantom.make(kind, loaded.label.shape, rng)
        expected = volumes["CT" if kind == "CT" else "OutPhase"]
        if kind == "CT":
            label, expected = (label == 1).astype(np.uint8), expected.clip(-1000)
        np.testing.assert_array_equal(loaded.label, label)
        np.testing.assert_allclose(loaded.image[..., 0], expected, atol=0.51)
        assert loaded.kind == kind and loaded.image.dtype == np.float32
    assert loaded.spacing_mm == pytest.approx((190 / 12, 10.0, 10.0), abs=1e-4)


def test_only_the_liver_is_annotated_in_ct(chaos):
    label = np.arange(5, dtype=np.uint8)
    targets, weights = chaos.encode(label, "CT")
    np.testing.assert_array_equal(targets, np.eye(5))
    assert weights.tolist() == [1, 1, 0, 0, 0]
    for kind in ("T1DUAL", "T2SPIR", ""):
        assert chaos.encode(label, kind)[1].tolist() == [1, 1, 1, 1, 1]


dice_ce = jax.jit(losses.dice_ce)


def loss_of(chaos, predicted, truth, kind):
    """The loss of a confident prediction, organ numbers (y, x)."""
    logits = jnp.asarray(12 * np.eye(5, dtype=np.float32)[predicted])
    target, weights = chaos.encode(np.asarray(truth, np.uint8), kind)
    sums = dice_ce(logits[None], jnp.asarray(target)[None], jnp.asarray(weights)[None])
    return float(sums["loss"][0])


def test_a_kidney_in_ct_costs_nothing_and_a_missed_liver_does(chaos):
    truth = np.zeros((8, 8), int)
    truth[:4, :4] = 1
    kidney, missed, replaced = truth.copy(), truth.copy(), truth.copy()
    kidney[6:, 6:] = 2
    missed[:2, :4] = 0
    replaced[:2, :4] = 2
    perfect = loss_of(chaos, truth, truth, "CT")
    assert perfect < 0.01
    assert loss_of(chaos, kidney, truth, "CT") == pytest.approx(perfect, abs=1e-4)
    assert loss_of(chaos, missed, truth, "CT") > 1
    assert loss_of(chaos, replaced, truth, "CT") > 1
    for kind in ("T1DUAL", "T2SPIR"):  # where kidneys are annotated, one too many is an error
        assert loss_of(chaos, kidney, truth, kind) > 0.5


def test_predictions_for_ct_hold_the_liver_alone(chaos, files):
    prepared = chaos.prepare(chaos.load(dataclasses.replace(files["CT_1"], label=None)))
    probabilities = np.zeros((16, 48, 48, 5), np.float32)
    probabilities[..., :] = (0.25, 0.35, 0.3, 0.05, 0.05)  # liver against 0.65 of anything else
    assert not chaos.finish(probabilities, prepared).any()
    assert (chaos.finish(probabilities, dataclasses.replace(prepared, kind="T1DUAL")) == 1).all()
    probabilities[..., :] = (0.05, 0.55, 0.1, 0.2, 0.1)
    assert (chaos.finish(probabilities, prepared) == 1).all()


def test_the_largest_piece_of_each_organ_is_kept():
    label = np.zeros((4, 9, 9), np.uint8)
    label[:2, :3, :3], label[3, 8, 8] = 1, 1
    label[2, 3, 3] = 1  # touches the first by a corner
    label[0, 6:, :2], label[3, :4, 6:] = 3, 3
    kept = largest_pieces(label)
    assert kept[2, 3, 3] == 1 and kept[3, 8, 8] == 0
    assert not kept[0, 6:, :2].any() and (kept[3, :4, 6:] == 3).all()
    np.testing.assert_array_equal(largest_pieces(kept), kept)


def test_scores_are_of_what_is_annotated(chaos, files):
    case = chaos.load(files["CT_1"])
    row = chaos.score(case.label, case.label, case.spacing_mm, kind="CT")
    assert row["score_liver"] == 100 and math.isnan(row["dice_spleen"])
    lost = chaos.mismatch(case.label, case.spacing_mm, kind="CT")
    assert lost["dice_liver"] == 0 and math.isnan(lost["dice_spleen"])
    z, y, x = (n * s for n, s in zip(case.label.shape, case.spacing_mm, strict=True))
    assert lost["mssd_mm_liver"] == pytest.approx(math.sqrt(z**2 + y**2 + x**2))


def row_of(**scores):
    """A row whose every metric of an organ is one number."""
    return {
        f"{metric}_{organ}": scores.get(organ.replace(" ", "_"), math.nan)
        for metric in tables.COLUMNS.values()
        for organ in ORGANS
    }


def test_tasks_average_organs_within_a_case_first(chaos, files, tmp_path):
    mr = {"liver": 10.0, "right_kidney": 20.0, "left_kidney": 30.0, "spleen": 100.0}
    rows = {
        "CT_1": row_of(liver=80.0),
        "MR_1_T1DUAL_InPhase": row_of(**mr),
        "MR_1_T1DUAL_OutPhase": row_of(liver=999.0),  # the other phase is no result
        "MR_1_T2SPIR": row_of(**{name: 2 * value for name, value in mr.items()}),
        "MR_2_T1DUAL_OutPhase": row_of(**mr),  # but it is where a patient has no other
    }
    evaluated = [Evaluated(files[name], row, tmp_path) for name, row in rows.items()]
    values = {line[0]: line for line in chaos.tables(evaluated)[1].rows}
    livers = [80, 10, 20, 10]
    expected = {1: livers, 2: [80], 3: livers[1:], 4: [80, 40, 80, 40], 5: [40, 80, 40]}
    for task, cases in expected.items():
        _, n, mean, deviation, *_ = values[f"Task {task}"]
        assert n == len(cases) and mean == pytest.approx(np.mean(cases))
        if n > 1:
            assert deviation == pytest.approx(np.std(cases, ddof=1))
    means = [np.mean(cases) for cases in expected.values()]
    assert values["Average"][2] == pytest.approx(np.mean(means))
    shown = chaos.tables(evaluated)[0]
    assert shown.rows[2][:3] == ("Task 3", 3, "13.33 ± 5.77")
    without_mr = chaos.tables(evaluated[:1])[0]
    assert [line[0] for line in without_mr.rows][-1] == "Task 5"  # no average of two tasks
    organs = {line[0]: line for line in chaos.tables(evaluated)[2].rows}
    assert organs["spleen, T2SPIR"][2] == "200.00" and "spleen, CT" not in organs


def test_a_submission_scores_as_the_labels_it_was_written_from(root, files, tmp_path, rng):
    chaos = Chaos((48, 48), t1dual="OutPhase")
    evaluated, some = [], [case for case in files.values() if case.patient in ("CT_1", "MR_1")]
    for case in some:
        loaded = chaos.load(case)
        label = np.where(rng.random(loaded.label.shape) < 0.9, loaded.label, 0).astype(np.uint8)
        label[:2] = 1
        row = chaos.score(loaded.label, label, loaded.spacing_mm, kind=case.kind)
        evaluated.append(Evaluated(case, row, tmp_path))
        chaos.export(tmp_path, case, label, loaded.geometry)
    submission = tmp_path / "submission"
    assert sorted(p.name for p in submission.iterdir()) == [f"Task{task}" for task in range(1, 6)]
    results = submission / "Task4" / "MR" / "1" / "T1DUAL" / "Results"
    assert len(list(results.iterdir())) == 12 and (results / "img000.png").exists()
    assert not (submission / "Task2" / "MR").exists()
    assert not (submission / "Task5" / "CT").exists()
    greys = {task: set() for task in (1, 3, 4, 5)}
    for task, values in greys.items():
        for path in submission.glob(f"Task{task}/MR/**/*.png"):
            values.update(np.unique(Image.open(path)).tolist())
    assert greys[1] == greys[3] == {0, 63} and greys[4] == greys[5] == {0, 63, 126, 189, 252}
    found = chaos_submission.evaluate(chaos, some, submission)
    assert found[0].rows == chaos.tables(evaluated)[0].rows
    # In the order of file names: the first is the highest slice of this CT.
    ct = files["CT_1"]
    label = np.zeros_like(chaos.load(ct).label)
    label[-1] = 1
    chaos.export(tmp_path, ct, label, None)
    first = chaos_submission.folder_of(submission, ct, 1) / "img000.png"
    assert np.asarray(Image.open(first)).any()
    np.testing.assert_array_equal(chaos_submission.read(submission, ct, 1), label)


def test_a_submission_of_other_length_or_none_is_refused(files, tmp_path, chaos):
    case = files["CT_1"]
    chaos.export(tmp_path, case, chaos.load(case).label, None)
    next(chaos_submission.folder_of(tmp_path / "submission", case, 2).iterdir()).unlink()
    with pytest.raises(DataError, match="holds 15 masks, but the series has 16 slices"):
        chaos_submission.evaluate(chaos, [case], tmp_path / "submission")
    with pytest.raises(DataError, match="holds no masks of the 1 cases; expected such as .*Task1"):
        chaos_submission.evaluate(chaos, [case], tmp_path / "nothing")


def test_the_sample_submission_has_the_official_scores(shared_data, tmp_path):
    chaos = Chaos((64, 64))
    [case, _] = chaos.cases(shared_data / "chaos", labelled=True)
    shutil.copytree(
        shared_data / "golden" / "chaos_ct", chaos_submission.folder_of(tmp_path, case, 2)
    )
    numbers = chaos_submission.evaluate(chaos, [case], tmp_path)[1]
    row = next(dict(zip(numbers.columns, line, strict=True)) for line in numbers.rows[1:2])
    assert row["task"] == "Task 2" and row["n"] == 1
    expected = {"dice": 0.978434, "ravd": 0.664534, "assd_mm": 0.734131, "mssd_mm": 14.0}
    for metric, value in expected.items():
        assert row[f"{metric}_mean"] == pytest.approx(value, abs=2e-6)


def test_the_real_mr_series_of_one_slice_loads(shared_data, caplog):
    chaos = Chaos((64, 64))
    [_, case] = chaos.cases(shared_data / "chaos", labelled=True)
    with caplog.at_level("INFO"):
        loaded = chaos.load(case)
    assert "one slice; its thickness is that of SpacingBetweenSlices" in caplog.text
    assert loaded.image.shape == (1, 256, 256, 1) and loaded.spacing_mm[0] == 5.5
    assert np.bincount(loaded.label.ravel()).tolist() == [62477, 1706, 670, 512, 171]
    assert chaos.prepare(loaded).image.shape == (1, 64, 64, 1)


@pytest.mark.parametrize("case", ["CT_1", "CT_2", "MR_1_T2SPIR"])
def test_a_segmentation_lies_on_the_slices_it_refers_to(root, files, tmp_path, rng, case):
    """CT_1 is written downwards, CT_2 has one series identifier for each file."""
    hd = pytest.importorskip("highdicom")
    chaos, case = Chaos((48, 48), formats="seg"), files[case]
    label = chaos.load(case).label
    [path] = chaos.export(tmp_path, case, label, None)
    assert path.name == f"{case.id}.seg.dcm"
    seg = hd.seg.segread(path)
    assert [seg.get_segment_description(n).segment_label for n in seg.segment_numbers] == list(
        ORGANS
    )
    right = seg.get_segment_description(2).SegmentedPropertyTypeCodeSequence[0]
    assert right.CodeMeaning == "Kidney"
    assert right.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    sources = [pydicom.dcmread(file) for file in case.images]
    assert seg.StudyInstanceUID == sources[0].StudyInstanceUID
    assert seg.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    referred = {
        instance.ReferencedSOPInstanceUID: item.SeriesInstanceUID
        for item in seg.ReferencedSeriesSequence
        for instance in item.ReferencedInstanceSequence
    }
    used = {source.SOPInstanceUID: source.SeriesInstanceUID for source in sources}
    assert referred.items() <= used.items() and len(referred) > 5
    assert len(set(referred.values())) == (len(referred) if case.id == "CT_2" else 1)
    found = seg.get_pixels_by_source_instance(
        [source.SOPInstanceUID for source in sources],
        combine_segments=True,
        ignore_spatial_locations=False,
        assert_missing_frames_are_empty=True,
    )
    series = dicom.read_header(case.images)
    np.testing.assert_array_equal(series.to_volume(np.asarray(found, np.uint8)), label)


def test_a_volume_is_predicted_to_nifti_but_has_no_dicom_to_refer_to(chaos, tmp_path):
    affine = np.diag([2.0, 2.0, 5.0, 1.0])  # RAS: rows and columns turn
    nib.save(nib.Nifti1Image(np.ones((6, 7, 4), np.int16), affine), tmp_path / "scan.nii.gz")
    [case] = chaos.cases(tmp_path / "scan.nii.gz", labelled=False)
    loaded = chaos.load(case)
    label = np.zeros(loaded.image.shape[:3], np.uint8)
    label[1, 2, 3] = 4
    path = chaos.write(tmp_path / "out" / "scan.nii.gz", label, loaded.geometry)
    back, geometry = nifti.read_label(path)
    np.testing.assert_array_equal(back, label)
    np.testing.assert_allclose(geometry.affine, affine)
    assert chaos.export(tmp_path / "out", case, label, loaded.geometry) == []  # of unknown kind
    with pytest.raises(DataError, match="scan.nii.gz: a DICOM segmentation refers to DICOM"):
        Chaos((48, 48), formats=("seg",)).export(tmp_path, case, label, loaded.geometry)
    [case] = Chaos((48, 48), kind="CT").cases(tmp_path / "scan.nii.gz", labelled=False)
    written = chaos.export(tmp_path / "out", case, label, loaded.geometry)
    assert len(written) == 3 * 4 and "Task1/CT/scan/Results" in str(written[0])


def test_figures_show_each_organs_best_median_and_worst(chaos, files, tmp_path):
    evaluated = []
    for case in files.values():
        loaded = chaos.load(case)
        path = chaos.write(tmp_path / f"{case.id}.nii.gz", loaded.label, loaded.geometry)
        row = chaos.score(loaded.label, loaded.label, loaded.spacing_mm, kind=case.kind)
        evaluated.append(Evaluated(case, row, path))
    found = chaos.figures(evaluated)
    assert [name for name, *_ in found] == ["organs_ct", "organs_mr"]
    (_, ct, _), (_, mr, caption) = found
    assert len(ct.axes) == 6 and len(mr.axes) == 4 * 6 and "each organ" in caption
    assert {text.get_text() for text in mr.legends[0].get_texts()} == set(ORGANS)
    titles = [axes.get_title() for axes in ct.axes]
    assert titles[:2] == ["Best, truth", "Best, prediction"]
    colours = {name: colour for name, (_, colour) in chaos.layers(loaded.label).items()}
    assert list(colours) == list(ORGANS)


def test_settings_that_mean_nothing_are_refused(root):
    for wrong, text in (
        ({"t1dual": "Phase"}, "t1dual='Phase' is unknown; known: InPhase, OutPhase"),
        ({"statistics": "image"}, "statistics='image' is unknown; known: slice, volume"),
        ({"formats": ("jpg",)}, "formats='jpg' is unknown; known: png, seg"),
        ({"kind": "PET"}, "kind='PET' is unknown; known: auto, CT"),
        ({"aggregate": "mean"}, "aggregate='mean' is unknown; known: clean, synapse2022"),
        ({"deidentify": "False"}, "deidentify is 'False'; expected True or False"),
        ({"deidentify": 1}, "deidentify is 1; expected True or False"),
        ({"keep_largest": "no"}, "keep_largest is 'no'; expected True or False"),
        ({"keep_largest": None}, "keep_largest is None; expected True or False"),
    ):
        with pytest.raises(ConfigError, match=text):
            challenges.get("chaos", size=(48, 48), **wrong)


def test_faulty_cases_are_all_reported_at_once(root, chaos, tmp_path):
    broken = shutil.copytree(root, tmp_path / "broken")
    for number in (1, 2):
        shutil.rmtree(broken / "Train_Sets" / "CT" / str(number) / "Ground")
    with pytest.raises(ManyErrors, match=r"(?s)2 faulty.*CT_1.*CT_2"):
        chaos.cases(broken, labelled=True)
    errors = []
    assert len(chaos.cases(broken, labelled=True, errors=errors)) == 6 and len(errors) == 2


def test_the_fingerprint_changes_with_what_the_network_sees():
    base = Chaos((48, 48)).fingerprint()
    assert Chaos((64, 64)).fingerprint() != base
    assert Chaos((48, 48), statistics="volume").fingerprint() != base
    assert Chaos((48, 48), keep_largest=True).fingerprint() == base


def flipped(get_config, **fields):
    config = get_config()
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


@pytest.mark.parametrize(
    ("field", "value", "instead"),
    [
        ("inference__flips", True, (1,)),
        ("inference__flips", (1, 2), (1,)),
        ("inference__flips", (2,), ()),
        ("inference__flips", [2], ()),
        ("augment__flip", (0, 1), (0,)),
        ("augment__flip", (1,), ()),
    ],
)
def test_flips_that_exchange_the_kidneys_are_refused(field, value, instead, tmp_path):
    name = field.replace("__", ".")
    config = flipped(chaos_omnianet.get_config, **{field: value})
    with pytest.raises(ConfigError, match="right kidney and left kidney") as error:
        experiment.build(config, tmp_path)
    assert f"config.{name} flips along axis" in str(error.value)
    assert f'Use "--config.{name}={instead}"' in str(error.value)
    experiment.build(flipped(chaos_omnianet.get_config, **{field: instead}), tmp_path)


def test_flips_that_exchange_no_sides_are_as_before(tmp_path):
    for name, module in (("brats", brats_dxnet), ("camus", camus_omnianet)):
        challenge = challenges.get(name)
        axes = tuple(range(len(module.get_config().data.patch)))
        config = flipped(module.get_config, inference__flips=True, augment__flip=axes)
        experiment.build(config, tmp_path)
        assert challenge.sides == ()


@pytest.mark.parametrize("value", [2, 1, "yes", (3,), (-1,), ("x",)])
def test_flips_of_no_axis_are_refused(value, tmp_path):
    with pytest.raises(
        ConfigError, match=r"config.inference.flips=.*: expected a sequence, or True"
    ):
        experiment.build(flipped(brats_dxnet.get_config, inference__flips=value), tmp_path)


def test_a_patch_of_volumes_has_x_last(tmp_path):
    volumes = {"data__patch": (32, 32, 32)}
    config = flipped(chaos_omnianet.get_config, augment__flip=(0, 1), **volumes)
    experiment.build(config, tmp_path)
    config = flipped(chaos_omnianet.get_config, inference__flips=True, **volumes)
    with pytest.raises(ConfigError, match=r"flips along axis 2 .*Use .*flips=\(0, 1\)"):
        experiment.build(config, tmp_path)


def test_classes_that_are_sides_are_classes():
    for name in challenges.CHALLENGES:
        kind = challenges.find(name)
        for pair in kind.sides:
            assert len(set(pair)) == 2 and set(pair) <= set(kind.classes)
