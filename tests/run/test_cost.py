"""What a run costs: parameters without their copies, and the largest peak of all its starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

from crossdim_jax.run import cost
from tests import toy


def test_parameters_are_counted_once_and_the_largest_peak_is_kept(tmp_path, monkeypatch):
    state, _, _ = toy.make_run()
    peaks = iter((300.0, 200.0, 400.0))
    monkeypatch.setattr(cost, "peak_memory_mb", lambda: next(peaks))
    found = []
    for _ in range(3):
        cost.record(tmp_path, state, devices=3, training_cases="2 of 3")
        cost.record_peak(tmp_path)
        found.append(json.loads((tmp_path / "run.json").read_text()))
    assert [run["peak_memory_mb"] for run in found] == [300.0, 300.0, 400.0]
    assert found[0]["devices"] == 3
    assert found[0]["parameters"] == 4 * 27 + 4 + 2 * 4 * 27 + 2


def test_a_record_with_numbers_that_nothing_can_hold_is_told_of_and_made_anew(tmp_path, caplog):
    (tmp_path / "run.json").write_text('{"devices": 1, "peak_memory_mb": 1' + "0" * 400 + "}")
    cost.record_peak(tmp_path)
    assert "run.json: its field 'peak_memory_mb' is 1000" in caplog.text
    assert json.loads((tmp_path / "run.json").read_text())["peak_memory_mb"] < 1e9


PROGRAM = """
from crossdim_jax.run import cost as run_cost
before = run_cost.peak_memory_mb()
held = bytearray(300_000_000)
held[::4096] = b"1" * len(held[::4096])
del held
print(run_cost.peak_memory_mb() - before)
"""


def test_the_peak_is_that_of_this_process_and_not_of_its_parent():
    held = bytearray(800_000_000)
    held[::4096] = b"1" * len(held[::4096])
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(held) and 250 < float(result.stdout) < 400
