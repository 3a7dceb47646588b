import os
import re
import shutil

import numpy as np
import pytest

from crossdim_jax.data import cache_entry
from crossdim_jax.errors import DataError
from tests.data.caches import build


def test_a_damaged_entry_is_made_again(challenge, phantom_folder, tmp_path, cached):
    entry = build(challenge, phantom_folder, tmp_path)[0]
    path = entry.folder / "image.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="image.npy: the cached case cannot be read.*remove"):
        _ = entry.image
    again = build(challenge, phantom_folder, tmp_path)[0]
    np.testing.assert_array_equal(again.image, cached[0].image)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_two_runs_that_find_the_same_damage_both_go_on(
    challenge, phantom_folder, tmp_path, cached, monkeypatch, when
):
    """The other run, in this process: it has set the damage aside, or is faster after that."""
    entry = build(challenge, phantom_folder, tmp_path)[0]
    (entry.folder / "meta.json").write_bytes(b"")
    good = shutil.copytree(cached[0].folder, tmp_path / "good")
    read, replace = cache_entry.read, os.replace

    def found(folder, *args):
        case = read(folder, *args)
        if case is None and challenge.loads and folder.exists() and when == "before":
            replace(folder, tmp_path / "aside")
        return case

    def renamed(source, target):
        replace(source, target)
        if source == entry.folder and when == "meanwhile":
            shutil.copytree(good, entry.folder)

    def load(case):
        challenge.loads += 1
        return type(challenge).load(challenge, case)

    challenge.loads = 0
    monkeypatch.setattr(challenge, "load", load)
    monkeypatch.setattr(cache_entry, "read", found)
    monkeypatch.setattr(os, "replace", renamed)
    again = build(challenge, phantom_folder, tmp_path, num_threads=0)[0]
    assert challenge.loads == 1 and again.folder == entry.folder
    np.testing.assert_array_equal(again.image, cached[0].image)
    assert not list(tmp_path.glob(".*"))


def spoil_image(folder):
    path = folder / "image.npy"
    content = bytearray(path.read_bytes())
    content[5000:5004] = np.float32(np.nan).tobytes()
    found = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def spoil(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


@pytest.mark.parametrize(
    "damage",
    [
        spoil_image,
        spoil("foreground.npy", lambda content: content[:-2] + b"\xff\xff"),
        spoil("label.npy", lambda content: content.replace(b"|u1", b"|i1")),
        spoil("meta.json", lambda content: content[:-9]),
        spoil("meta.json", lambda content: b"[]"),
        spoil("meta.json", lambda content: content.replace(b'"shape": [', b'"shape": [9,', 1)),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "label.npy").unlink(),
    ],
)
def test_damage_of_any_kind_is_said_and_made_good(
    challenge, phantom_folder, tmp_path, cached, damage, caplog
):
    damage(build(challenge, phantom_folder, tmp_path, num_threads=0)[0].folder)
    again = build(challenge, phantom_folder, tmp_path, num_threads=0)
    assert "Phantom_000" in caplog.text and "damaged" in caplog.text
    for one, two in zip(again, cached, strict=True):
        for name in ("image", "label", "foreground"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    caplog.clear()
    assert build(challenge, phantom_folder, tmp_path) == again and not caplog.text


def test_a_copied_cache_is_compared_once(challenge, phantom_folder, tmp_path, monkeypatch, caplog):
    build(challenge, phantom_folder, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy)
    taken, account = [], cache_entry._account
    monkeypatch.setattr(cache_entry, "_account", lambda path: taken.append(path) or account(path))
    monkeypatch.setattr(challenge, "load", None)
    build(challenge, phantom_folder, tmp_path / "b")
    assert len(taken) == 12
    build(challenge, phantom_folder, tmp_path / "b")
    assert len(taken) == 12 and not caplog.text


def test_a_header_that_claims_more_than_there_is_names_the_folder(
    challenge, phantom_folder, tmp_path
):
    """Damage while a run reads."""
    entry = build(challenge, phantom_folder, tmp_path)[0]
    for name in ("image", "label", "foreground"):
        path = entry.folder / f"{name}.npy"
        header = re.sub(rb"\(\d+,", b"(99999999999,", path.read_bytes()[:128], count=1)
        path.write_bytes(header.replace(b" " * 12, b"", 1))
        with pytest.raises(DataError, match=f"{name}.npy: the cached case cannot be read.*remove"):
            getattr(entry, name)


def test_nothing_in_the_cache_is_a_pickle(cached):
    for path in cached[0].folder.glob("*.npy"):
        np.load(path, allow_pickle=False)
