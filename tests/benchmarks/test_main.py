"""The benchmark's command keeps what it has measured, however it ends."""

import json
import sys

import pytest

pytest.importorskip("torch", reason="benchmarks compare with PyTorch (extra port)")

from benchmarks import __main__ as command
from benchmarks import timing

SAMPLE = {"median_ms": 2.0, "min_ms": 1.0, "max_ms": 3.0, "rounds": 1, "variant": "eager"}


def test_a_run_that_is_cut_off_keeps_the_rows_it_has(tmp_path, monkeypatch):
    done = []

    def measured(case, **_):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(case.name)
        found = {"group": case.group, "name": case.name, "dtype": case.dtype, "ours": SAMPLE}
        found |= {"theirs": SAMPLE, "variants_ms": {}, "ratio": 1.0, "ratio_of_least": 1.0}
        return found | {"relative_error": 0.0, "others_share": None}

    monkeypatch.setattr(timing, "measure", measured)
    out = tmp_path / "new" / "bench.json"
    flags = ["--size=32", "--only=^dense", "--device=cpu", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *flags])
    monkeypatch.setattr(command, "prepare", lambda device: "")  # of this very process
    with pytest.raises(KeyboardInterrupt):
        command.main()
    assert len(done) == 2
    assert [row["name"] for row in json.loads(out.read_text())["rows"]] == done
    assert all(name in out.with_suffix(".md").read_text() for name in done)
