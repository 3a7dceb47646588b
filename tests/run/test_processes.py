"""Processes that train together, as on many hosts, are the training of one."""

import json
import signal
import socket
import time

import numpy as np
import pytest

from tests import small_run

STEPS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the cases, their cache, and compiled programs."""
    root = tmp_path_factory.mktemp("processes")
    small_run.make_cases(root / "cases")
    return root


@pytest.fixture(scope="module")
def start(folder):
    with small_run.copies(folder) as start:
        yield start


def begin_all(folder, count, deaf_at=None, name="many", **settings):
    """So many processes of one run, each with a device; the second does not hear somewhere."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        small_run.begin(
            folder,
            name,
            STEPS,
            join=[address, count, index],
            deaf_at=deaf_at if index == 1 else None,
            **settings,
        )
        for index in range(count)
    ]


def end_all(processes):
    told = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], "\n".join(told)


def seen(workdir, count):
    """The ids of each batch by its number, for each process."""
    result = []
    for index in range(count):
        records = (workdir / f"seen_{index}_of_{count}.jsonl").read_text().splitlines()
        result.append([json.loads(line) for line in records])
    return result


@pytest.mark.slow  # where processes leave together, `runtime/test_stop.py` says in make test
def test_one_is_told_to_stop_while_the_other_compiles(folder, start):
    """It waits for the other, or goes on to where it has to."""
    for place, number, status, kept in (
        ("step", signal.SIGINT, 130, []),
        ("validation", signal.SIGTERM, 75, ["4", "6"]),
    ):
        two = begin_all(folder, 2, start=start, deaf_at=place, name="deaf")
        small_run.wait_for(two[1], "deaf")
        two[0].send_signal(number)
        codes, told = end_all(two)
        assert codes == [status] * 2 and "Traceback" not in told, told
        folders = (folder / "deaf" / "checkpoints").glob("[0-9]*")
        assert sorted(path.name for path in folders) == kept


def test_two_processes_then_four_have_the_curve_of_one(folder, start):
    one = small_run.begin(folder, "one", STEPS, start)
    codes, told = end_all([one])
    assert codes == [0], told

    # Of two, the scheduler takes one away: both save, after the same step. The devices of a mesh
    # are in another order than the processes.
    two = begin_all(folder, 2, start=start, seconds=0.2, reverse=True)
    metrics = folder / "many" / "metrics.jsonl"
    until = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert time.monotonic() < until
        time.sleep(0.02)
    two[1].send_signal(signal.SIGTERM)
    codes, told = end_all(two)
    assert codes == [75, 75], told
    stopped = max(int(path.name) for path in (folder / "many" / "checkpoints").glob("[0-9]*"))
    assert 6 <= stopped < STEPS

    codes, told = end_all(begin_all(folder, 4, start=start))
    assert codes == [0] * 4, told
    curve, expected = small_run.lines(folder / "many"), small_run.lines(folder / "one")
    assert [(r["kind"], r["step"]) for r in curve] == [(r["kind"], r["step"]) for r in expected]
    for found, wanted in zip(curve, expected, strict=True):
        numbers = {key: value for key, value in wanted.items() if key != "kind"}
        measured = {key: found[key] for key in numbers}
        assert measured == pytest.approx(numbers, rel=1e-4, abs=1e-5)
    found, expected = small_run.final(folder / "many"), small_run.final(folder / "one")
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4, err_msg=name)

    # Each reads its part of every batch and no more.
    [batches] = seen(folder / "one", 1)
    whole = [ids for _, ids in batches[:STEPS]]
    for count, first in ((2, 0), (4, stopped)):
        parts = [[ids for _, ids in part] for part in seen(folder / "many", count)]
        for index, part in enumerate(parts):
            size = small_run.BATCH // count
            place = index if first else count - 1 - index  # the two were reversed
            mine = slice(place * size, (place + 1) * size)
            assert part[:6] == [ids[mine] for ids in whole[first : first + 6]]
