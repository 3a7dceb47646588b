"""Damaged records of a run folder: used, or refused by name; a report is made all the same."""

import json
import logging
import shutil
from pathlib import Path

from crossdim_jax import challenges
from crossdim_jax.data import splits
from crossdim_jax.errors import CrossdimError
from crossdim_jax.report import page
from crossdim_jax.report.reading import read_metrics
from crossdim_jax.storage import checksums, metrics_file, plain, run_folder
from crossdim_jax.training import metric_writer
from tests.fuzz import harness
from tests.fuzz.harness import Format

CONFIG = {"model": {"name": "dxnet", "dtype": "float32"}, "optim": {"betas": [0.9, 0.99]}, "n": 1}
STATISTICS = {"dice_WT": {"mean": 0.5, "sd": None, "n": 2}, "hd95_WT": {"mean": 3.5, "n_nan": 1}}
SUMMARY = {
    "challenge": "phantom",
    "profile": "brats2022",
    "aggregation": "clean",
    "regions": ["WT"],
    "definitions": {"dice": "2 TP", "hd95": "95th percentile"},
    "n_cases": 2,
    "statistics": STATISTICS,
    "groups": {"one": {"n_cases": 1, "statistics": STATISTICS}},
    "tables": [
        {"title": "T", "shown": True, "columns": ["a", "b"], "rows": [["x", 1.5]], "notes": ["n"]}
    ],
    "truths": {"a": "0123"},
    "provenance": {"flips": True, "patch": [1, 2]},
    "mismatched": [["a", "shape"]],
    "failed": [],
    "missing": [["c", "gone"]],
}
CASES = [["id", "dice_WT", "hd95_WT", "note"], ["a", 0.25, None, ""], ["=b", 0.75, 3.5, "x; y"]]


def text(*records: object) -> list[bytes]:
    return [json.dumps(record).encode() for record in records]


def metrics(folder: Path) -> list[bytes]:
    rows = [
        {"kind": kind, "step": step, "epoch": step / 2, "loss": 0.5, "dice_WT": None}
        for step in (1, 2, 3, 4)
        for kind in ("train", "validation")
    ]
    return [b"".join(line + b"\n" for line in text(*rows))]


def cases(folder: Path) -> list[bytes]:
    table = plain.csv_text(CASES)
    return [table.encode(), table.replace(",", ";").replace(".", ",").encode("utf-16")]


def placed(path: Path, name: str) -> Path:
    """The folder of a run in which the file has its name."""
    target = path.parent / "run" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return path.parent / "run"


SMALL = {
    "config.json": CONFIG,
    "splits.json": {"train": ["a", "b\udcfc"], "validation": ["c"], "test": ["d"]},
    "run.json": {"devices": 1, "device": "x", "peak_memory_mb": 1.5},
    "checksums.json": {"a/b": [3, "0f"]},
}


def read_any(path: Path) -> None:
    """Reads a small record as each of those that a run folder holds."""
    workdir = placed(path, "config.json")
    (workdir / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
    checksums.damage(placed(path, checksums.FILE))
    errors = []
    for read in (
        lambda: run_folder.claim(workdir, CONFIG, write=False),
        lambda: run_folder.require_same_network(workdir, CONFIG),
        lambda: splits.Split.read(placed(path, "splits.json") / "splits.json"),
        lambda: run_folder.read_cost(placed(path, "run.json")),
    ):
        try:
            read()
        except CrossdimError as error:
            errors.append(str(error))
    unnamed = [error for error in errors if str(workdir) not in error]
    assert not unnamed, unnamed


def resumed(path: Path) -> None:
    """Every line is kept, dropped because its step is made again, or put aside."""
    workdir = placed(path, run_folder.METRICS)
    (workdir / run_folder.UNREADABLE_METRICS).unlink(missing_ok=True)
    read_metrics(workdir / run_folder.METRICS)
    before = path.read_bytes().split(b"\n")[:-1]
    metric_writer.MetricWriter(workdir, step=100).close()
    kept = (workdir / run_folder.METRICS).read_bytes().split(b"\n")
    aside = metrics_file.lines(workdir / run_folder.UNREADABLE_METRICS)
    gone = [line for line in before if line.strip() and line not in {*kept, *aside}]
    assert all(metrics_file.record(line)["step"] >= 100 for line in gone), gone


def reported(name: str):
    """Reads a part of the evaluation as the report does; no section may fail for it."""

    def read(path: Path) -> None:
        logging.disable()
        page.PACKAGES = ()  # looking up their versions takes most of the time
        workdir = placed(path, name)
        made = page.write(workdir, challenges.get("phantom"), [], config={"a": 1})
        assert "could not be made" not in made.read_text(encoding="utf-8")

    return read


FORMATS = (
    Format("records", ".json", lambda _: text(*SMALL.values()), read_any, folder=True),
    Format("metrics.jsonl", ".jsonl", metrics, resumed, folder=True),
    Format("summary.json", ".json", lambda _: text(SUMMARY), reported(page.SUMMARY), folder=True),
    Format("cases.csv", ".csv", cases, reported(page.CASES), folder=True),
)


@harness.few_and_thousands(FORMATS)
def test_damaged_records_are_used_or_refused_by_name(name, count, seed, tmp_path):
    harness.run(__name__, name, tmp_path, count=count, seed=seed)
