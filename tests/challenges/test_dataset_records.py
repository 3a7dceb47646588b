"""Records of a data set that are not what they should be; many structures."""

import json
import random
import tracemalloc

import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.challenges.base import Challenge
from crossdim_jax.challenges.dataset.description import read
from crossdim_jax.errors import CrossdimError
from tests import dataset_folders as folders
from tests.dataset_folders import challenge

VALUES = [None, True, -1, 2, 1e400, "x", "", "../..", "\0", [], [1], {}, {"0": 1}, [[]], 10**30]


def _mutated(value, rng):
    """A copy in which something is replaced, at any depth."""
    if rng.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return rng.choice(VALUES)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    if isinstance(copy, dict) and rng.random() < 0.2:
        del copy[key]
    else:
        copy[key] = _mutated(copy[key], rng)
    return copy


@pytest.mark.parametrize("form", ["nnunet", "decathlon", "listed"])
def test_no_dataset_json_does_anything_but_work_or_be_refused_by_name(tmp_path, form):
    make = folders.nnunet if form == "nnunet" else folders.decathlon
    root = make(tmp_path, channels=2)
    path = root / "dataset.json"
    record = json.loads(path.read_text()) | {"colours": {"liver": "#ffffff"}}
    if form == "listed":
        record |= {"labels": {"background": 0, "liver": [1, 2], "spleen": 2, "ignore": 3}}
        record |= {"regions_class_order": [1, 2]}
    rng, refused = random.Random(0), 0
    for _ in range(300):
        path.write_text(json.dumps(_mutated(record, rng)))
        try:
            description = read(root)
            ours = challenge(root)
            ours.cases(root, labelled=True, errors=[])
            assert description.record is not None
        except CrossdimError as error:
            refused += 1
            assert str(tmp_path) in str(error)
    assert 100 < refused < 300


def many(classes):
    names = {f"r{i}": i for i in range(1, classes)}
    return challenges.get(
        "dataset",
        described={
            "channel_names": {"0": "T1"},
            "labels": {"background": 0, **names},
            "file_ending": ".nii.gz",
        },
    )


def test_structures_scored_one_by_one_score_as_all_together():
    dataset, rng = many(5), np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 6, 7, 8)).astype(np.uint8)
    together = Challenge.score(dataset, truth, predicted, (2.0, 1.0, 1.5))
    row = dataset.score(truth, predicted, (2.0, 1.0, 1.5))
    assert list(row) == list(together)
    np.testing.assert_array_equal(list(row.values()), list(together.values()))


def test_scoring_of_many_structures_holds_the_masks_of_one():
    dataset, shape = many(140), (12, 40, 40)
    truth = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8) % 3
    tracemalloc.start()
    dataset.score(truth, truth, (1.0, 1.0, 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * truth.size < 2 * 139 * truth.size  # distances are float64
