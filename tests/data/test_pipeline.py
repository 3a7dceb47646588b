import dataclasses
import itertools
import threading

import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.data import cache, pipeline
from crossdim_jax.errors import ConfigError, DataError

PATCH = (12, 16, 8)
PINNED = [[0, 0, 4], [1, 0, 3], [4, 1, 2], [4, 3, 1], [4, 1, 4], [1, 2, 0]]


def dataset(cached, **kwargs):
    settings = {"patch": PATCH, "batch_size": 2, "seed": 5} | kwargs
    return pipeline.train_dataset(cached, challenges.get("phantom"), **settings)


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def equal(one, two):
    return all(np.array_equal(one[name], two[name]) for name in ("image", "target", "id"))


@pytest.fixture
def ramp(tmp_path):
    """A case whose one channel holds 1 + the voxel's flat index, and one foreground voxel."""

    def make(shape, label=None, dtype=np.float32):
        tmp_path.mkdir(exist_ok=True)
        values = 1 + np.arange(np.prod(shape)).reshape(shape)
        label = np.zeros(shape, np.uint8) if label is None else label
        np.save(tmp_path / "image.npy", values[..., None].astype(dtype))
        np.save(tmp_path / "label.npy", label)
        regions = np.moveaxis(challenges.get("phantom").masks(label), -1, 0)
        np.save(tmp_path / "foreground.npy", np.argwhere(regions).astype(np.uint16))
        return cache.CachedCase("ramp", "ramp", tmp_path, shape, (1.0, 1.0, 1.0), None, shape)

    return make


def test_a_batch_has_the_promised_shapes_and_types(cached):
    batch = next(iter(dataset(cached, batch_size=3)))
    assert batch["image"].shape == (3, *PATCH, 4) and batch["image"].dtype == np.float32
    assert batch["target"].shape == (3, *PATCH, 3) and batch["target"].dtype == np.uint8
    assert set(np.unique(batch["target"])) <= {0, 1}
    assert {str(i) for i in batch["id"]} <= {case.id for case in cached}


def test_image_and_target_are_cut_at_the_same_place(cached):
    for batch in take(iter(dataset(cached, foreground=1.0)), 6):
        for image, target, name in zip(*(batch[k] for k in ("image", "target", "id")), strict=True):
            case = next(case for case in cached if case.id == name)
            places = np.argwhere(np.asarray(case.image)[..., 0] == image[6, 8, 4, 0])
            starts = [place - (6, 8, 4) for place in places]
            cuts = [tuple(slice(s, s + w) for s, w in zip(at, PATCH, strict=True)) for at in starts]
            [cut] = [cut for cut in cuts if np.array_equal(np.asarray(case.image)[cut], image)]
            expected = challenges.get("phantom").encode(np.asarray(case.label)[cut])[0]
            np.testing.assert_array_equal(target, expected)


def test_the_sequence_is_a_function_of_the_seed(cached):
    one, two, other = (take(iter(dataset(cached, seed=s)), 5) for s in (5, 5, 6))
    assert all(map(equal, one, two))
    assert not any(map(equal, one, other))


def test_threads_do_not_change_the_sequence(cached):
    one = take(iter(dataset(cached, num_threads=0)), 6)
    two = take(iter(dataset(cached, num_threads=4, prefetch=8)), 6)
    assert all(map(equal, one, two))


@pytest.mark.parametrize("num_threads", [0, 2])
def test_without_threads_the_caller_reads(cached, num_threads):
    challenge, threads = challenges.get("phantom"), set()
    encode = challenge.encode

    def watched(label, kind):
        threads.add(threading.current_thread())
        return encode(label, kind)

    challenge.encode = watched
    batches = pipeline.train_dataset(
        cached, challenge, patch=PATCH, batch_size=2, seed=5, num_threads=num_threads
    )
    take(iter(batches), 2)
    if num_threads == 0:
        assert threads == {threading.current_thread()}
    else:
        assert threads and threading.current_thread() not in threads


def test_an_epoch_shows_every_case_once_and_epochs_differ(cached):
    ids = [str(batch["id"][0]) for batch in take(iter(dataset(cached, batch_size=1)), 24)]
    epochs = [ids[i : i + 4] for i in range(0, 24, 4)]
    assert all(sorted(epoch) == [case.id for case in cached] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_a_restored_iterator_goes_on_as_the_other_would_have(cached):
    iterator = iter(dataset(cached))
    take(iterator, 3)
    state = iterator.get_state()
    expected = take(iterator, 4)
    restored = iter(dataset(cached))
    restored.set_state(state)
    assert all(map(equal, take(restored, 4), expected))


def test_the_global_batch_does_not_depend_on_the_number_of_processes(cached):
    whole = take(iter(dataset(cached, batch_size=4)), 3)
    parts = [
        take(iter(dataset(cached, batch_size=4, positions=positions)), 3)
        for positions in ([0, 3], [1, 2])
    ]
    for step in range(3):
        for name in ("image", "target", "id"):
            first, second = (part[step][name] for part in parts)
            joined = np.stack([first[0], *second, first[1]])
            np.testing.assert_array_equal(joined, whole[step][name])


def test_a_process_opens_only_the_cases_of_its_share(cached):
    opened = []

    class Noting(cache.CachedCase):
        def _map(self, name):
            opened.append(self.id)
            return super()._map(name)

    cases = [Noting(**vars(case)) for case in cached]
    options = {"batch_size": 4, "positions": [1], "num_threads": 0}
    mine = take(iter(dataset(cases, **options)), 5)
    named = [str(name) for batch in mine for name in batch["id"]]
    assert list(dict.fromkeys(opened)) == list(dict.fromkeys(named))
    assert len(opened) <= 3 * 5  # image, label and foreground of one case a step


def test_every_position_is_equally_likely_edges_included(rng):
    shape, patch = (6, 5, 9), (4, 5, 2)
    starts = [pipeline.crop_start(shape, patch, rng) for _ in range(6000)]
    counts = np.zeros((3, 1, 8), int)
    np.add.at(counts, tuple(np.array(starts).T), 1)
    # 24 positions, 250 each expected, sd 15.5: five sd either way.
    assert 170 < counts.min() and counts.max() < 330


def test_a_patch_is_cut_where_it_says(ramp):
    shape = (6, 7, 8)
    case = ramp(shape)
    batch = next(iter(dataset([case], patch=(2, 3, 4), batch_size=1)))
    patch = batch["image"][0, ..., 0]
    start = np.unravel_index(int(patch[0, 0, 0]) - 1, shape)
    cut = tuple(slice(s, s + w) for s, w in zip(start, (2, 3, 4), strict=True))
    np.testing.assert_array_equal(patch, np.asarray(case.image)[cut][..., 0])


def test_a_small_volume_is_padded_evenly(ramp):
    case = ramp((3, 4, 5), label=np.full((3, 4, 5), 4, np.uint8))
    batch = next(iter(dataset([case], patch=(6, 4, 8), batch_size=1, foreground=0.5)))
    image, target = batch["image"][0, ..., 0], batch["target"][0]
    assert image.shape == (6, 4, 8)
    np.testing.assert_array_equal(image[1:4, :, 1:6], np.asarray(case.image)[..., 0])
    assert np.count_nonzero(image) == 60 and target.sum() == 60 * 3


def corners(batch, shape):
    """Where the patches of `ramp` begin, (b, 3)."""
    first = batch["image"][:, 0, 0, 0, 0].astype(int) - 1
    return np.stack(np.unravel_index(first, shape), -1)


@pytest.mark.parametrize("voxel", [(4, 5, 3), (0, 0, 0), (8, 8, 7), (1, 8, 0)])
def test_a_labelled_voxel_is_anywhere_in_a_foreground_patch(ramp, voxel):
    """Each position inside the volume that holds the voxel is as likely as the others."""
    shape, patch = (9, 9, 8), (3, 4, 8)
    label = np.zeros(shape, np.uint8)
    label[voxel] = 2
    batch = next(
        iter(
            dataset(
                [ramp(shape, label)], patch=patch, batch_size=400, foreground=1.0, num_threads=0
            )
        )
    )
    assert (batch["target"][..., 0].sum((1, 2, 3)) == 1).all()
    starts, counts = np.unique(corners(batch, shape), axis=0, return_counts=True)
    possible = [
        [s for s in range(length - width + 1) if s <= v < s + width]
        for v, length, width in zip(voxel, shape, patch, strict=True)
    ]
    assert [tuple(start) for start in starts] == list(itertools.product(*possible))
    expected = 400 / len(starts)
    assert (abs(counts - expected) < 5 * expected**0.5).all()


def test_a_tiny_region_is_drawn_as_often_as_a_huge_one(ramp):
    """20 voxels of one class beside 5,000 of another; nothing else tells them apart."""
    shape = (30, 30, 30)
    label = np.zeros(shape, np.uint8)
    label[2:22, 2:22, 2:15] = 2  # whole tumour only
    label[25:27, 25:27, 20:25] = 1  # and its core
    batch = next(
        iter(
            dataset(
                [ramp(shape, label)], patch=(3, 3, 3), batch_size=400, foreground=1.0, num_threads=0
            )
        )
    )
    whole, core, enhancing = batch["target"].any((1, 2, 3)).T
    assert whole.all() and not enhancing.any()
    assert 150 < core.sum() < 250  # the whole tumour holds the core, which is 1 of its 260 voxels


def test_the_positions_without_foreground_are_what_they_were(ramp):
    batch = next(iter(dataset([ramp((9, 8, 7))], patch=(3, 3, 3), batch_size=6)))
    assert corners(batch, (9, 8, 7)).tolist() == PINNED


def test_foreground_is_a_probability(ramp):
    label = np.zeros((20, 20, 20), np.uint8)
    label[10, 10, 10] = 1
    for probability, low, high in ((0.0, 0, 8), (0.5, 80, 130), (1.0, 200, 200)):
        batches = dataset(
            [ramp(label.shape, label)],
            patch=(3, 3, 3),
            batch_size=200,
            foreground=probability,
            num_threads=0,
        )
        hits = int(next(iter(batches))["target"][..., 0].any((1, 2, 3)).sum())
        assert low <= hits <= high


def test_a_case_without_foreground_still_gives_patches(ramp):
    batch = next(iter(dataset([ramp((9, 9, 9))], patch=(3, 3, 3), foreground=1.0)))
    assert not batch["target"].any()


def test_half_precision_is_delivered_as_float32(ramp):
    batch = next(iter(dataset([ramp((4, 4, 4), dtype=np.float16)], patch=(4, 4, 4))))
    assert batch["image"].dtype == np.float32
    assert batch["image"][0].max() == 64


def test_the_error_of_a_case_names_it_and_keeps_its_cause(cached, tmp_path):
    gone = dataclasses.replace(cached[0], folder=tmp_path)
    (tmp_path / "label.npy").write_bytes(b"no array")
    for threads in (0, 2):
        with pytest.raises(DataError, match=f"case {gone.id}: no patch.*label.npy") as error:
            next(iter(dataset([gone], num_threads=threads)))
        assert isinstance(error.value.__cause__, DataError)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"patch": (8,)}, "patch is"),
        ({"patch": (8, 8), "foreground": 0.5}, "foreground is 0.5; slices"),
        ({"patch": (8, 0, 8)}, "patch is"),
        ({"foreground": 1.5}, "foreground is 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"num_threads": -1}, "num_threads is -1"),
    ],
)
def test_settings_out_of_range(cached, settings, says):
    with pytest.raises(ConfigError, match=says):
        dataset(cached, **settings)


def test_cases_must_be_there_and_labelled(cached, tmp_path):
    with pytest.raises(DataError, match="no case"):
        dataset([])
    with pytest.raises(DataError, match=f"without a label cannot train: {cached[0].id}"):
        dataset([dataclasses.replace(cached[0], folder=tmp_path), cached[1]])


def test_slices_are_each_shown_once_an_epoch_with_their_classes(tmp_path):
    """Of two cases with 2 and 3 slices; the weights say what is annotated in each."""
    cases = []
    for name, depth in (("one", 2), ("two", 3)):
        folder = tmp_path / name
        folder.mkdir()
        image = np.arange(depth)[:, None, None, None] + np.zeros((depth, 4, 6, 1))
        np.save(folder / "image.npy", image.astype(np.float32))
        np.save(folder / "label.npy", np.full((depth, 4, 6), 1, np.uint8))
        shape = (depth, 4, 6)
        case = cache.CachedCase(name, name, folder, shape, (1.0,) * 3, None, shape, kind=name)
        cases.append(case)

    class Slices:
        def encode(self, label, kind):
            return np.stack([label == 0, label == 1], -1).astype(np.uint8), np.float32(
                [1, kind == "two"]
            )

    data = pipeline.train_dataset(cases, Slices(), patch=(4, 6), batch_size=1, seed=1)
    batches = take(iter(data), 10)
    seen = [(str(b["id"][0]), float(b["image"].max())) for b in batches]
    every = {(f"{n}, slice {i}", float(i)) for n, d in (("one", 2), ("two", 3)) for i in range(d)}
    assert set(seen[:5]) == set(seen[5:]) == every
    for batch in batches:
        assert batch["image"].shape == (1, 4, 6, 1) and batch["target"].shape == (1, 4, 6, 2)
        assert batch["weights"].tolist() == [[1, batch["id"][0].startswith("two")]]
    wrong = pipeline.train_dataset(cases, Slices(), patch=(4, 8), batch_size=1, seed=1)
    with pytest.raises(DataError, match=r"slices are \(4, 6\), expected \(4, 8\)"):
        next(iter(wrong))
