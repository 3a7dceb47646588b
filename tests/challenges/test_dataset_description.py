"""dataset.json: three forms become one description, and what is wrong is named, all at once."""

import json

import numpy as np
import pytest

from crossdim_jax.challenges.dataset import colours, labels, sides
from crossdim_jax.challenges.dataset.description import of_record, read
from crossdim_jax.errors import DataError, ManyErrors
from tests import dataset_folders as folders


def faults(tmp_path, remove=(), **keys) -> str:
    folders.describe(tmp_path, remove, **keys)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(tmp_path / "dataset.json") in str(error.value)
    return str(error.value)


def test_the_forms_say_the_same(tmp_path):
    nnunet = read(folders.nnunet(tmp_path / "n"))
    decathlon = read(
        folders.decathlon(tmp_path / "m", modality={"0": "CT"}),
    )
    older = read(folders.describe(tmp_path / "o", remove=["channel_names"], modality={"0": "CT"}))
    assert nnunet.labels == decathlon.labels == older.labels
    assert nnunet.channels == decathlon.channels == older.channels
    assert [found.form for found in (nnunet, decathlon, older)] == ["nnunet", "decathlon", "nnunet"]
    assert nnunet.labels.classes == ("background", "liver", "spleen")
    again = of_record(nnunet.record(), nnunet.path)
    assert (again.labels, again.channels) == (nnunet.labels, nnunet.channels)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("CT", "ct"),
        ("ct", "ct"),
        ("noNorm", "nonorm"),
        ("rgb_to_0_1", "rgb_to_0_1"),
        ("T1", "zscore"),
        ("CT2", "zscore"),
    ],
)
def test_a_channels_name_says_how_it_is_normalised(tmp_path, name, scheme):
    found = read(folders.describe(tmp_path, channel_names={"0": name}))
    assert [channel.normalisation for channel in found.channels] == [scheme]


REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def test_regions_keep_their_order_and_may_overlap(tmp_path):
    found = read(folders.describe(tmp_path, labels=REGIONS, regions_class_order=[1, 2, 3])).labels
    assert found.classes == ("whole", "core", "enhancing") and found.regions
    label = np.arange(4)
    np.testing.assert_array_equal(found.masks(label), [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(found.decode(found.encode(label).astype(np.float32)), label)
    # The later region overwrites the earlier, also where it lies outside of it.
    assert found.decode(np.array([0.2, 0.9, 0.1])) == 2
    # A list of one value makes no region (nnU-Net, label_handling.py:32).
    single = read(folders.describe(tmp_path / "s", labels={"background": 0, "a": [1], "b": 2}))
    assert not single.labels.regions


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"labels": {"liver": 1}}, 'have no "background"; add "background": 0'),
        ({"labels": {"Background": 0, "liver": 1}}, "must be written in lower case"),
        ({"labels": {"background": 1, "liver": 2}}, "labels.background: is 1, expected 0"),
        ({"labels": {"background": [0], "liver": 1}}, "labels.background: is [0], expected 0"),
        ({"labels": {"background": 0, "a": 0}}, "labels.a: holds the value 0"),
        ({"labels": {"background": 0}}, "nothing to segment"),
        ({"labels": {"background": 0, "a": 1.5}}, "labels.a: is 1.5, expected a whole number"),
        ({"labels": {"background": 0, "a": True}}, "labels.a: is True"),
        ({"labels": {"background": 0, "a": -1}}, "labels.a: is -1"),
        ({"labels": {"background": 0, "a": 70000}}, "from 0 to 65535"),
        ({"labels": {"background": 0, "a": []}}, "labels.a: is []"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "has the value 1, as 'a' has"),
        ({"labels": {"background": 0, "a\x1b": 1}}, "is no name"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "'a' is the name of 1 and 2"),
        ({"labels": {"0": "background", "one": "a"}}, "labels.one: expected a whole number"),
        ({"labels": ["a"]}, "labels: is ['a'], expected an object"),
        ({"labels": REGIONS}, "regions_class_order: is missing"),
        ({"labels": REGIONS, "regions_class_order": [1, 2]}, "has 2 values, expected 3"),
        ({"labels": REGIONS, "regions_class_order": [1, 1, 3]}, "writes 1 for 'core'"),
        ({"labels": REGIONS, "regions_class_order": "123"}, "is '123'"),
        (
            {"labels": {"background": 0, "a": 2, "ignore": 1}},
            "expected the highest value of all, 3",
        ),
        ({"labels": {"background": 0, "a": 1, "ignore": [2]}}, "labels.ignore: is [2]"),
        ({"channel_names": {"1": "CT"}}, "has the numbers 1, expected 0"),
        ({"channel_names": {}}, "names each channel by its number"),
        ({"channel_names": {"0": 7}}, "expected a text for each"),
        ({"file_ending": "nii.gz"}, "file_ending: is 'nii.gz', expected one of .nii.gz"),
        ({"file_ending": "/../x"}, "file_ending"),
        ({"numTraining": "3"}, "numTraining: is '3'"),
        ({"colours": {"lung": "#ffffff"}}, "colours.lung: is no label; there are liver, spleen"),
        ({"colors": {"liver": "red"}}, 'colors.liver: expected "#rrggbb"'),
    ],
)
def test_what_cannot_be_is_refused_by_field(tmp_path, keys, expected):
    assert expected in faults(tmp_path, **keys)


@pytest.mark.parametrize("key", ["channel_names", "labels", "file_ending"])
def test_a_missing_key_is_named(tmp_path, key):
    assert f"1. {key}: " in faults(tmp_path, remove=[key])


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    folders.describe(tmp_path, labels={"liver": 1}, channel_names={"3": "CT"}, file_ending=".doc")
    with pytest.raises(ManyErrors) as error:
        read(tmp_path)
    assert [field for field, _ in error.value.failures] == [
        "channel_names",
        "labels",
        "file_ending",
    ]


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{", b'{"labels": {}, "labels": {}}', b"\xff\xfe", b"[" * 100_000]
)
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match="dataset.json"):
        read(tmp_path)


def test_values_with_gaps_are_told_once_and_come_back(tmp_path, caplog):
    folders.describe(tmp_path, labels={"background": 0, "a": 7, "b": 300})
    for _ in range(2):
        found = read(tmp_path).labels
    assert caplog.text.count("not consecutive (0, 7, 300)") == 1
    label = np.array([0, 7, 300, 7], np.uint16)
    targets = found.encode(label)
    np.testing.assert_array_equal(targets.argmax(-1), [0, 1, 2, 1])
    back = found.decode(targets.astype(np.float32))
    np.testing.assert_array_equal(back, label)
    assert back.dtype == np.uint16 and found.unknown(np.array([0, 8, 8, 300])) == {8: 2}


def test_the_ignore_label_is_no_class(tmp_path):
    folders.describe(tmp_path, labels={"background": 0, "a": 1, "ignore": 2})
    found = read(tmp_path).labels
    assert found.classes == ("background", "a") and found.allowed == (0, 1, 2)
    targets = found.encode(np.array([0, 1, 2]))
    assert targets.dtype == np.int8
    np.testing.assert_array_equal(targets, [[1, 0], [0, 1], [-1, -1]])
    np.testing.assert_array_equal(found.masks(np.array([0, 1, 2]))[:, 0], [False, True, False])
    assert found.encode(np.array([0])).dtype == np.int8  # whatever the label holds


def test_a_folder_without_json_says_what_it_should_hold(tmp_path):
    with pytest.raises(DataError, match="holds no dataset.json, and no two folders"):
        read(tmp_path)
    (tmp_path / "one.json").write_text("{}")
    with pytest.raises(DataError, match=r"--config\.challenge\.file=one\.json"):
        read(tmp_path)
    with pytest.raises(DataError, match="there is no such folder"):
        read(tmp_path / "absent")


def test_case_names_of_a_json_are_names_of_files(tmp_path):
    """A prediction is written under the case's name."""
    files = {"images": ["i.nii.gz"], "label": "l.nii.gz"}
    for name in ("../../evil", "a/b", "", ".hidden", "a\0b", "x" * 300):
        text = faults(tmp_path, dataset={name: files}, remove=["file_ending"])
        assert "is no name for a case" in text
    assert "expected the path of an image" in faults(tmp_path, dataset={"a": {"images": [1]}})
    assert "expected the path of an image" in faults(tmp_path, dataset={"a": 3})


def test_colours_are_taken_and_the_others_differ(tmp_path):
    folders.describe(tmp_path, colours={"liver": [255, 0, 16]})
    assert read(tmp_path).colours == {"liver": "#ff0010"}
    many = [f"label_{i}" for i in range(148)]
    found = colours.of(many, {"label_3": "#123456"})
    assert found["label_3"] == "#123456" and len(set(found.values())) == 148


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("kidney_left", "kidney_right"), {("kidney_left", "kidney_right")}),
        (("Right-Hippocampus", "Left-Hippocampus"), {("Right-Hippocampus", "Left-Hippocampus")}),
        (("leftLung", "rightLung", "heart"), {("leftLung", "rightLung")}),
        (("lung l", "lung r"), {("lung l", "lung r")}),
        (("LH.x", "rh.x"), {("LH.x", "rh.x")}),
        (("left kidney", "spleen"), {("left kidney", "background")}),
        (("region l", "spleen"), set()),
        (("left to right shunt", "liver"), set()),
        (("upright", "cleft", "bright"), set()),
    ],
)
def test_names_say_the_sides(names, expected):
    assert set(sides.pairs(names)) == expected


def test_words_for_labels():
    found = labels.Labels(("a", "b"), ((1,), (2, 3)), (1, 3), True, 9)
    assert str(found) == "0 background, 1 a, 2+3 b, 9 ignore"
    assert json.loads(json.dumps(found.record()))["regions_class_order"] == [1, 3]
