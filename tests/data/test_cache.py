import concurrent.futures
import dataclasses
import gzip
import os
import threading

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.data import cache, cache_entry, digests
from crossdim_jax.errors import ConfigError, DataError, ManyErrors
from crossdim_jax.imaging import preprocess
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.storage.files import replacing
from tests.data.caches import build, folders


def test_the_cache_holds_what_preprocessing_gives(challenge, phantom_folder, cached):
    for files, entry in zip(challenge.cases(phantom_folder, labelled=True), cached, strict=True):
        prepared = preprocess.brain(challenge.load(files))
        np.testing.assert_array_equal(entry.image, prepared.image)
        np.testing.assert_array_equal(entry.label, prepared.label)
        assert entry.id == files.id and entry.patient == files.patient
        assert entry.bbox == prepared.bbox and entry.full_shape == prepared.full_shape
        assert entry.spacing_mm == prepared.spacing_mm
        assert entry.shape == prepared.image.shape[:3]
        assert isinstance(entry.image, np.memmap) and not entry.image.flags.writeable


def test_foreground_is_every_voxel_of_each_region(challenge, cached):
    for entry in cached:
        regions = np.moveaxis(challenge.masks(np.asarray(entry.label)), -1, 0)
        np.testing.assert_array_equal(entry.foreground, np.argwhere(regions))


def test_a_large_foreground_is_sampled_the_same_way_every_time(
    challenge, phantom_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(cache, "MAX_FOREGROUND", 50)
    one = build(challenge, phantom_folder, tmp_path / "a")[0]
    two = build(challenge, phantom_folder, tmp_path / "b")[0]
    np.testing.assert_array_equal(one.foreground, two.foreground)
    regions = np.moveaxis(challenge.masks(np.asarray(one.label)), -1, 0)
    kept = np.unique(one.foreground, axis=0)
    assert np.bincount(kept[:, 0]).tolist() == [min(50, n) for n in regions.sum((1, 2, 3))]
    assert regions[tuple(one.foreground.T)].all()


def test_foreground_is_the_same_from_masks_of_single_slices(
    challenge, phantom_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(cache, "MAX_FOREGROUND", 50)
    whole = build(challenge, phantom_folder, tmp_path / "a")
    monkeypatch.setattr(cache, "_MASKS", 1)
    heights, masks = [], challenge.masks
    monkeypatch.setattr(challenge, "masks", lambda la: heights.append(len(la)) or masks(la))
    for one, two in zip(whole, build(challenge, phantom_folder, tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(one.foreground, two.foreground)
    assert set(heights) == {1}


def test_a_case_is_decoded_once(challenge, phantom_folder, tmp_path, monkeypatch):
    first = build(challenge, phantom_folder, tmp_path / "cache")

    def refuse(files):
        raise AssertionError("decoded again")

    monkeypatch.setattr(challenge, "load", refuse)
    assert build(challenge, phantom_folder, tmp_path / "cache") == first


def test_the_cases_come_in_the_order_asked_for(challenge, phantom_folder, tmp_path):
    files = challenge.cases(phantom_folder, labelled=True)[::-1]
    entries = cache.build(challenge, files, tmp_path, progress=False, num_threads=3)
    assert [entry.id for entry in entries] == [case.id for case in files]


def test_the_key_covers_everything_the_content_depends_on(
    challenge, own_phantoms, tmp_path, monkeypatch
):
    files = challenge.cases(own_phantoms, labelled=True)[0]
    keys = []

    def changed(dtype="float32"):
        content = digests.Digests(None).of_case(files)
        keys.append(cache.key(challenge, files, content, dtype))
        return keys[-1] not in keys[:-1]

    assert changed() and not changed(), "the key must not change by itself"
    assert changed("float16")
    for path in (files.images[2], files.label):
        path.touch()
        assert not changed(), "only the content counts"
        path.write_bytes(path.read_bytes() + b"\0")
        assert changed(), path
    files = dataclasses.replace(files, label=None)
    assert changed()
    files = dataclasses.replace(files, images=files.images[::-1])
    assert changed()
    files = dataclasses.replace(files, kind="another")
    assert changed()
    monkeypatch.setattr(challenge, "fingerprint", lambda: {"convention": "another"})
    assert changed()
    monkeypatch.setitem(preprocess.PARAMETERS, "margin", 1)
    assert changed()
    monkeypatch.setattr(cache, "CACHE_VERSION", 0)
    assert changed()


def test_a_changed_source_is_decoded_again(challenge, own_phantoms, tmp_path):
    before = build(challenge, own_phantoms, tmp_path / "cache")
    path = own_phantoms / "Phantom_001" / "Phantom_001_seg.nii.gz"
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine, label.header), path)
    after = build(challenge, own_phantoms, tmp_path / "cache")
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]
    assert not after[1].label.any() and after[1].foreground.shape == (0, 4)


def settle(monkeypatch):
    """Lets files that were written just now be taken for old ones."""
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**12))


def test_a_source_changed_in_place_with_its_old_time_is_decoded_again(
    challenge, own_phantoms, tmp_path, monkeypatch
):
    settle(monkeypatch)
    path = own_phantoms / "Phantom_001" / "Phantom_001_seg.nii"
    packed = path.with_name(path.name + ".gz")
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    before = build(challenge, own_phantoms, tmp_path / "cache")[1]
    found = path.stat()
    content = bytearray(path.read_bytes())
    content[-20000:] = bytes(20000)
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert path.stat().st_size == found.st_size and path.stat().st_mtime_ns == found.st_mtime_ns
    after = build(challenge, own_phantoms, tmp_path / "cache")[1]
    assert after.folder != before.folder
    assert np.count_nonzero(after.label) < np.count_nonzero(before.label)


def test_unchanged_sources_are_read_once_and_moved_ones_are_not_decoded_again(
    challenge, own_phantoms, tmp_path, monkeypatch
):
    settle(monkeypatch)
    root = tmp_path / "cache"
    first = build(challenge, own_phantoms, root)
    moved = own_phantoms.rename(tmp_path / "moved")
    monkeypatch.setattr(challenge, "load", None)
    assert build(challenge, moved, root) == first
    monkeypatch.setattr(digests.reading, "open_regular", None)
    assert build(challenge, moved, root) == first
    (root / digests.FILE).write_text("{torn")
    with pytest.raises(ManyErrors, match="4 of 4 cases"):
        build(challenge, moved, root)


def test_a_source_changed_while_it_is_decoded_is_not_kept(
    challenge, own_phantoms, tmp_path, monkeypatch
):
    load = challenge.load

    def meddling(files):
        case = load(files)
        if files.id == "Phantom_002":
            files.label.write_bytes(files.label.read_bytes() + b"\0")
        return case

    monkeypatch.setattr(challenge, "load", meddling)
    with pytest.raises(ManyErrors, match="Phantom_002_seg.nii.gz: was changed while it was read"):
        build(challenge, own_phantoms, tmp_path / "cache")
    assert len(folders(tmp_path / "cache")) == 3


@pytest.mark.parametrize("line", ["ElementDataFile = a.raw", "  ElementDataFile= raw/a.raw \r"])
@pytest.mark.parametrize("name", ["a.mhd", "A.MHD", "a.mha"])
def test_the_voxels_of_a_metaimage_are_part_of_its_content(tmp_path, line, name):
    header, voxels = tmp_path / name, tmp_path / line.partition("=")[2].strip()
    voxels.parent.mkdir(exist_ok=True)
    header.write_text(f"ObjectType = Image\n{line}\n")
    case = CaseFiles("a", "a", (header,), None)
    contents = []
    for values in (b"12", b"13"):
        voxels.write_bytes(values)
        contents.append(digests.Digests(None).of_case(case))
    assert contents[0] != contents[1]
    voxels.unlink()  # which reading the case tells of
    digests.Digests(None).of_case(case)


def test_a_long_or_odd_name_of_a_case_makes_a_folder(challenge, phantom_folder, tmp_path):
    files = challenge.cases(phantom_folder, labelled=True)[:2]
    names = ("\udce9/../" + "é" * 300, "é" * 300)
    files = [dataclasses.replace(f, id=name) for f, name in zip(files, names, strict=True)]
    entries = cache.build(challenge, files, tmp_path, progress=False)
    assert [entry.id for entry in entries] == list(names)
    assert cache.build(challenge, files, tmp_path, progress=False) == entries
    assert {entry.folder.parent for entry in entries} == {tmp_path}


def test_half_precision_is_the_same_rounded(challenge, phantom_folder, cached, tmp_path):
    half = build(challenge, phantom_folder, tmp_path, dtype="float16")
    assert half[0].image.dtype == np.float16
    np.testing.assert_array_equal(half[0].image, cached[0].image.astype(np.float16))
    with pytest.raises(ConfigError, match="dtype='int8' is unknown; known: float32, float16"):
        build(challenge, phantom_folder, tmp_path, dtype="int8")


def test_cases_without_label(challenge, own_phantoms, tmp_path):
    (own_phantoms / "Phantom_000" / "Phantom_000_seg.nii.gz").unlink()
    files = challenge.cases(own_phantoms, labelled=False)
    entries = cache.build(challenge, files, tmp_path / "cache", progress=False)
    assert entries[0].label is None and entries[0].foreground.shape == (0, 4)
    assert entries[1].label is not None


def test_all_bad_cases_are_reported_at_once_and_the_good_ones_kept(
    challenge, own_phantoms, tmp_path, monkeypatch
):
    truncated = own_phantoms / "Phantom_000" / "Phantom_000_t1.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:500])
    empty = own_phantoms / "Phantom_003" / "Phantom_003_flair.nii.gz"
    image = nib.load(empty)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine, image.header), empty)
    with pytest.raises(ManyErrors, match="2 of 4 cases cannot be used") as error:
        build(challenge, own_phantoms, tmp_path / "cache")
    assert [case for case, _ in error.value.failures] == ["Phantom_000", "Phantom_003"]
    assert str(truncated) in str(error.value) and str(empty) in str(error.value)
    good = [case for case in challenge.cases(own_phantoms, labelled=True) if case.id[-1] in "12"]
    monkeypatch.setattr(challenge, "load", None)
    assert len(cache.build(challenge, good, tmp_path / "cache", progress=False)) == 2


@pytest.mark.parametrize("num_threads", [0, 2])
def test_cases_that_failed_when_looked_for_are_reported_with_the_others(
    challenge, own_phantoms, tmp_path, monkeypatch, num_threads
):
    (own_phantoms / "Phantom_002" / "Phantom_002_t2.nii.gz").unlink()
    truncated = own_phantoms / "Phantom_001" / "Phantom_001_t1.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:500])
    failures, tried, load = [], [], challenge.load
    files = challenge.cases(own_phantoms, labelled=True, errors=failures)

    def counted(case):
        tried.append(case.id)
        return load(case)

    monkeypatch.setattr(challenge, "load", counted)

    def run(files):
        return cache.build(
            *(challenge, files, tmp_path / "cache"),
            num_threads=num_threads,
            progress=False,
            failures=tuple(failures),
        )

    with pytest.raises(ManyErrors, match="^2 of 4 cases cannot be used.*2 faulty") as error:
        run(files)
    assert [case for case, _ in error.value.failures] == ["Phantom_002", "Phantom_001"]
    assert "no modality 't2'" in str(error.value) and str(truncated) in str(error.value)
    assert sorted(tried) == ["Phantom_000", "Phantom_001", "Phantom_003"]
    assert len(failures) == 1, "the caller's list is left as it was"
    # Also if nothing else is wrong.
    with pytest.raises(ManyErrors, match="^1 of 3 cases cannot be used.*1 faulty"):
        run([case for case in files if case.id != "Phantom_001"])
    with pytest.raises(ManyErrors, match="^1 of 1 cases cannot be used"):
        run([])


def test_without_threads_cases_are_decoded_one_by_one_by_the_caller(
    challenge, phantom_folder, tmp_path, monkeypatch, cached
):
    load, seen = challenge.load, []

    def watched(files):
        seen.append((files.id, threading.current_thread()))
        return load(files)

    monkeypatch.setattr(challenge, "load", watched)
    entries = build(challenge, phantom_folder, tmp_path, num_threads=0)
    assert seen == [(case.id, threading.current_thread()) for case in cached]
    for entry, expected in zip(entries, cached, strict=True):
        np.testing.assert_array_equal(entry.image, expected.image)


def test_a_negative_number_of_threads_is_refused(challenge, phantom_folder, tmp_path):
    with pytest.raises(ConfigError, match="num_threads is -1; expected 0"):
        build(challenge, phantom_folder, tmp_path / "cache", num_threads=-1)
    assert not (tmp_path / "cache").exists()


def test_an_unforeseen_error_in_one_case_is_reported_with_its_kind(
    challenge, phantom_folder, tmp_path, monkeypatch
):
    def fail(files):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(challenge, "load", fail)
    with pytest.raises(ManyErrors, match="Phantom_002: ZeroDivisionError: oh"):
        build(challenge, phantom_folder, tmp_path)


def test_a_root_that_cannot_be_made_is_named(challenge, phantom_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=f"{tmp_path}/file/cache: the cache cannot be written"):
        build(challenge, phantom_folder, tmp_path / "file" / "cache")


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_full_disk_is_one_error_and_leaves_no_debris(
    challenge, phantom_folder, tmp_path, monkeypatch, num_threads
):
    def full(path, array, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_entry.np, "save", full)
    with pytest.raises(cache.CacheWriteError, match="the cache cannot be .*No space left") as error:
        build(challenge, phantom_folder, tmp_path, num_threads=num_threads)
    assert str(tmp_path) in str(error.value)
    assert not isinstance(error.value, ManyErrors)
    assert folders(tmp_path) == []


def test_an_interrupted_build_is_finished_by_the_next(
    challenge, phantom_folder, tmp_path, monkeypatch
):
    load, seen = challenge.load, []

    def interrupted(files):
        seen.append(files.id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return load(files)

    monkeypatch.setattr(challenge, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(challenge, phantom_folder, tmp_path, num_threads=1)
    assert not list(tmp_path.glob(".*"))
    monkeypatch.setattr(challenge, "load", load)
    assert len(build(challenge, phantom_folder, tmp_path)) == 4


def test_two_builds_at_once_agree(phantom_folder, tmp_path, monkeypatch):
    ready = threading.Barrier(2)
    write = cache_entry.write

    def together(*args):
        ready.wait(20)
        write(*args)

    monkeypatch.setattr(cache_entry, "write", together)

    def run(_):
        challenge = challenges.get("phantom")
        return build(challenge, phantom_folder, tmp_path, num_threads=1)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        one, two = pool.map(run, range(2))
    assert one == two
    assert len(folders(tmp_path)) == 4
    assert all(np.isfinite(entry.image).all() for entry in one)


def test_leftovers_of_killed_runs_are_removed_but_not_those_of_running_ones(
    challenge, phantom_folder, tmp_path
):
    for name, age in ((".old.tmp", 2 * 24 * 3600), (".new.tmp", 60)):
        folder = tmp_path / name
        folder.mkdir()
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
    with replacing(tmp_path / "digests.json") as torn:  # named as a kill would leave it
        torn.write_text("torn")
    torn.write_text("torn")
    os.utime(torn, (0, 0))
    build(challenge, phantom_folder, tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".new.tmp"]


def test_real_cases(shared_data, tmp_path):
    challenge = challenges.get(
        "brats", layout="plain", convention="2015", modalities=("flair", "t1ce")
    )
    files = challenge.cases(shared_data / "brats2015", labelled=True)[:1]
    [entry] = cache.build(challenge, files, tmp_path, progress=False)
    assert entry.image.shape == (*entry.shape, 2) and entry.full_shape == (155, 240, 240)
    assert np.prod(entry.shape) < 0.5 * np.prod(entry.full_shape)
    assert 0 < np.bincount(entry.foreground[:, 0]).max() <= cache.MAX_FOREGROUND
    truth = np.asanyarray(nib.load(files[0].label).dataobj)
    full = preprocess.uncrop(np.asarray(entry.label), entry.bbox, entry.full_shape)
    np.testing.assert_array_equal(full.transpose(2, 1, 0), truth)  # stored in LPS
    assert gzip.open(files[0].label).read(4) == b"\x5c\x01\x00\x00"
