"""The harness itself finds what it is there to find."""

import gzip
import time
from pathlib import Path

import numpy as np
import pytest

from crossdim_jax.errors import DataError
from tests.fuzz import harness
from tests.fuzz.harness import Format


def _seeds(folder: Path) -> list[bytes]:
    return [b"Name = 17\n" + bytes(50), gzip.compress(bytes(100))]


def _says(path: Path) -> None:
    raise DataError(f"{path}: is damaged")


def _unless_good(fault):
    """A reader that is right about the seeds and goes wrong at the first changed file."""

    def read(path: Path) -> None:
        if path.read_bytes() not in _seeds(path.parent):
            fault(path)

    return read


def _nameless(path: Path) -> None:
    raise DataError("is damaged")


def _greedy(path: Path) -> None:
    try:
        np.empty(1 << 32, np.uint8)
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory") from error


def _slow(path: Path) -> None:
    try:
        time.sleep(60)
    except Exception as error:
        raise DataError(f"{path}: is slow") from error


FORMATS = (
    Format("good", ".x", _seeds, _unless_good(_says)),
    Format("KeyError", ".x", _seeds, _unless_good(lambda path: {}[path.name])),
    Format("does not name", ".x", _seeds, _unless_good(_nameless)),
    Format("too much memory", ".x", _seeds, _unless_good(_greedy)),
    Format("TooSlow", ".x", _seeds, _unless_good(_slow)),
)


def test_a_reader_that_names_its_files_passes(tmp_path):
    harness.run(__name__, "good", tmp_path, count=20)


@pytest.mark.parametrize("name", [row.name for row in FORMATS[1:]])
def test_a_fault_is_found_and_its_file_kept(name, tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match=name):
        harness.run(__name__, name, tmp_path, count=1)
    assert len(list(tmp_path.glob("fault_*.x"))) == 1


def test_mutations_are_the_same_each_time_and_differ_from_one_another():
    seeds = [bytes(range(256)) * 4, b"DimSize = 3 4 5\nElementType = MET_SHORT\n" * 10]
    first, again = (list(harness.mutations(seeds, 500, 3)) for _ in range(2))
    assert first == again != list(harness.mutations(seeds, 500, 4))
    assert len(set(first)) > 450 and not {*first[:100]} <= {*seeds}
