import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.training.metric_writer import MetricWriter
from crossdim_jax.training.progress import Progress
from crossdim_jax.training.totals import Totals, mean_known
from tests import toy


def write(folder, *records, **options):
    writer = MetricWriter(folder, **options)
    for kind, step in records:
        writer.write({"kind": kind, "step": step, "loss": 0.5})
    writer.sync()
    writer.close()


def lines(folder):
    return [(record["kind"], record["step"]) for record in toy.read_metrics(folder)]


def test_a_resume_drops_the_lines_of_steps_to_be_made_again(tmp_path):
    write(tmp_path, ("train", 2), ("validation", 2), ("train", 4), ("validation", 4), ("train", 6))
    write(tmp_path, ("train", 6), step=4)
    assert lines(tmp_path) == [
        ("train", 2), ("validation", 2), ("train", 4), ("validation", 4), ("train", 6),
    ]  # fmt: skip


def test_a_validation_to_be_made_again_is_dropped_too(tmp_path):
    write(tmp_path, ("train", 4), ("validation", 4))
    write(tmp_path, step=4, redo=["validation"])
    assert lines(tmp_path) == [("train", 4)]


def test_a_fresh_start_empties_the_file(tmp_path):
    write(tmp_path, ("train", 2))
    write(tmp_path)
    assert lines(tmp_path) == []


def test_a_torn_last_line_is_dropped(tmp_path):
    write(tmp_path, ("train", 2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    write(tmp_path, ("train", 4), step=3)
    assert lines(tmp_path) == [("train", 2), ("train", 4)]


BAD = (
    b"\xff\xfe",
    b"[1]",
    b'{"kind": "train"}',
    b'{"kind": "train", "step": "2"}',
    b'{"kind": 3, "step": 2}',
    b'{"kind": "train", "st',
    b'{"kind": "train", "step": 2, "x": "' + b"x" * (1 << 20) + b'"}',
    b"[" * 100_000,
)


def test_lines_that_cannot_be_read_are_told_of_and_kept_aside(tmp_path, caplog):
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "metrics.unreadable.jsonl"
    write(tmp_path, ("train", 2))
    with path.open("ab") as file:
        file.write(b"\n".join(BAD) + b'\n\n{"kind": "train", "step": 3}\n{"kind": "tr')
    write(tmp_path, ("train", 4), step=3)
    assert lines(tmp_path) == [("train", 2), ("train", 3), ("train", 4)]
    assert aside.read_bytes().split(b"\n") == [*BAD, b""]
    assert f"{path}: {len(BAD)} lines cannot be read; they are kept in {aside.name}" in caplog.text
    with path.open("ab") as file:
        file.write(b"{}\n")
    write(tmp_path, step=3)
    assert aside.read_bytes().split(b"\n") == [*BAD, b"{}", b""]


def test_a_pipe_in_place_of_the_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match="metrics.jsonl: is a named pipe"):
        MetricWriter(tmp_path)


def test_only_valid_json_is_written(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write({"kind": "validation", "step": 1, "dice": float("nan")})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["dice"] is None


def test_other_processes_write_nothing(tmp_path):
    write(tmp_path, ("train", 2), enabled=False)
    assert toy.read_metrics(tmp_path) == [] and not list(tmp_path.iterdir())


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match="metrics.jsonl: is a folder; a regular file is expected"):
        MetricWriter(tmp_path)


def test_totals_go_through_json_exactly(rng):
    totals = Totals()
    for _ in range(5):
        totals.add({"loss": (rng.random(), 3.0), "dice": (rng.random(2), np.array([2.0, 0.0]))})
    again = Totals(json.loads(json.dumps(totals.json())))
    more = {"loss": (rng.random(), 3.0)}
    totals.add(more)
    again.add(more)
    assert totals.json() == again.json()
    assert np.isnan(totals.mean("dice")[1]) and mean_known(totals.mean("dice")) < 1


def test_where_there_is_no_terminal_progress_is_lines():
    stream = io.StringIO()
    progress = Progress(40, 10, stream=stream, every_seconds=0)
    progress.update(20, 2.5, {"loss": 0.51234, "dice": 0.9, "images_per_s": 12.0})
    progress.update(40, 5.0, {"loss": 0.4})
    compiled, first, last = stream.getvalue().splitlines()
    assert compiled.startswith("compiled")
    assert first == "step 20/40, epoch 2.5, loss 0.512, Dice 0.9, images/s 12"
    assert last.startswith("step 40/40") and last.endswith(" 0 s left")


def test_lines_come_now_and_then_and_at_the_end():
    stream = io.StringIO()
    progress = Progress(100, stream=stream, every_seconds=1000)
    for step in range(1, 101):
        progress.update(step, step / 10, {"loss": 1.0})
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["compiled,", "step"]


def test_compilation_is_no_part_of_the_time_left(monkeypatch):
    """A first step of 100 s, then one a second: 7 steps are 7 s, not 7 x 34."""
    times = iter([0.0, 100.0, 100.0, 101.0, 102.0])
    monkeypatch.setattr("crossdim_jax.training.progress.time.monotonic", lambda: next(times))
    stream = io.StringIO()
    progress = Progress(10, stream=stream, every_seconds=0)
    for step in (1, 2, 3):
        progress.update(step, step / 10, {"loss": 1.0})
    assert stream.getvalue().splitlines()[-1].endswith(" 7 s left")


def test_on_a_terminal_progress_is_a_bar(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = Progress(4, stream=stream)
    progress.update(2, 0.5, {"loss": 0.25, "dice": 0.75, "images_per_s": 3.0})
    progress.say("validation")
    progress.close()
    shown = stream.getvalue()
    for part in ("epoch 0.5", "2/4", "loss=0.25", "Dice=0.75", "images/s=3", "left", "validation"):
        assert part in shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_told_of_once(tmp_path):
    writer = MetricWriter(tmp_path)
    writer._file.close()
    writer._file = open("/dev/full", "a")
    with pytest.raises(DataError, match=f"{writer.path}: cannot be written .No space left"):
        writer.write({"kind": "train", "step": 1})
    writer.close()  # tries again to write what could not be: that is no news
