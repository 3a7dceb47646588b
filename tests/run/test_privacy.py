"""What is passed on says nothing of the machine: no folders above a run or its data, user or host.

Every byte of every file that leaves a run folder is searched, also within archives and compressed
streams: report, figures, evaluation, predictions, checkpoints, weights.json.
"""

import dataclasses
import gzip
import json
import os
import re
import shutil
import socket
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.evaluation import predict as predict_lib
from crossdim_jax.evaluation import score
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.report import compare, page
from crossdim_jax.storage import run_folder
from crossdim_jax.training.checkpoint import Checkpointer
from tests import toy

FOLDER, USER, HOST = "marked folder of the ward", "marked_user", "marked-host"
MARKS = [FOLDER, FOLDER.split()[0], USER, HOST]


def contents(path):
    """The bytes of a file, and of what is compressed in it."""
    raw = path.read_bytes()
    yield raw
    if raw.startswith(b"\x1f\x8b"):
        yield gzip.decompress(raw)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    for start in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", raw):  # PNG's and PDF's streams
        try:
            yield zlib.decompressobj().decompress(raw[start.start() :])
        except zlib.error:
            continue


def assert_silent(folder, names):
    files = [path for name in names for path in [folder / name, *(folder / name).rglob("*")]]
    files = [path for path in files if path.is_file()]
    for path in files:
        for content in contents(path):
            for mark in MARKS:
                assert mark.encode() not in content, f"{path}: {mark}"
                assert mark.encode("utf-16-le") not in content, f"{path}: {mark}"
    return files


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder of a run and its data, both below a marked folder of a marked user on a marked host.

    One case is scored, one is on another grid, one cannot be read, and one has no prediction.
    """
    monkeypatch.setenv("USER", USER)
    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setenv("HOME", str(tmp_path / FOLDER / USER))
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr(page.figures, "DPI", 40)
    root = tmp_path / FOLDER / USER
    data, workdir = root / "data", root / "run"
    rng = np.random.default_rng(0)
    for name in "abcd":
        (data / name).mkdir(parents=True)
        volume = (rng.random((6, 7, 8)) + 1).astype(np.float32)
        label = np.zeros((6, 7, 8), np.uint8)
        label[2:4, 2:5, 2:6], label[2, 3, 3:5] = 2, 1
        nib.save(nib.Nifti1Image(volume, np.eye(4)), data / name / f"{name}_flair.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), data / name / f"{name}_seg.nii.gz")
    challenge = challenges.get("brats", layout="plain", convention="2021", modalities=("flair",))
    return root, workdir, data, challenge


def test_nothing_that_leaves_a_run_names_folders_user_or_host(run, caplog):
    root, workdir, data, challenge = run
    files = challenge.cases(data, labelled=True)
    gone = data / "e" / "e_flair.nii.gz"
    files.append(CaseFiles("e", "e", (gone,), files[0].label))
    config = {
        "data": {"root": str(data), "cache": str(root / "cache"), "patch": [6, 7, 8]},
        "weights": {"file": f"~/{USER}/w.safetensors", "note": f"was in {root}/old, {root}/older"},
        "workdir": str(workdir),
    }
    run_folder.claim(workdir, config)
    state, _, _ = toy.make_run()
    with Checkpointer(workdir) as checkpoints:
        checkpoints.save(state, {"step": 0, "config": config})
        checkpoints.save_best(state, {"step": 0, "config": config, "score": 0.5})
    with run_folder.only_process(workdir, "evaluating"):
        result = predict_lib.predict_folder(
            challenge, files, lambda x: np.ones((*x.shape[:3], 3), np.float32),
            workdir / "predictions", progress=False,
        )  # fmt: skip
        assert [case for case, _ in result.failed] == ["e"]
        nib.save(
            nib.Nifti1Image(np.ones((6, 7, 9), np.uint8), np.eye(4)),
            workdir / "predictions/b.nii.gz",
        )
        (workdir / "predictions/c.nii.gz").write_bytes(b"nonsense")
        (workdir / "predictions/d.nii.gz").unlink()
        provenance = {"checkpoint_step": 0, "weights": str(root / "w.safetensors")}
        score.evaluate_cases(
            challenge, files, workdir / "predictions", workdir / "evaluation",
            failed=result.failed, provenance=provenance, progress=False,
        )  # fmt: skip
        lines = [{"kind": "train", "step": s, "epoch": s, "loss": 1 / s} for s in (1, 2)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (workdir / "metrics.jsonl").write_text(text)
        broken = dataclasses.replace(files[0], images=(root / "nowhere" / "a.nii.gz",))
        page.write(workdir, challenge, [broken, *files[1:]])
    summary = json.loads((workdir / "evaluation/summary.json").read_text())
    assert [
        [case for case, _ in summary[kind]] for kind in ("mismatched", "failed", "missing")
    ] == [
        ["b"],
        ["e", "c"],
        ["d"],
    ]
    assert "c.nii.gz: " in dict(summary["failed"])["c"]
    assert str(workdir / "predictions/c.nii.gz") in caplog.text  # the terminal says where it lies
    left = [p.name for p in workdir.iterdir() if p.name != "config.json"]
    found = assert_silent(workdir, left)
    kinds = {path.suffix for path in found}
    assert {".html", ".png", ".pdf", ".csv", ".json", ".md", ".gz", ".jsonl", ".lock"} <= kinds
    html = (workdir / "report.html").read_text()
    assert ".../data" in html and "a.nii.gz: there is no such file" in html


def test_a_damaged_run_and_a_comparison_name_no_folders_either(run):
    root, workdir, _, challenge = run
    page.write(workdir_of(workdir), challenge, [])
    other = shutil.copytree(workdir, root / "other" / "run")
    for folder in (workdir, other):
        (folder / "config.json").write_text("{}")
        (folder / "evaluation").mkdir()
        (folder / "evaluation" / "summary.json").write_text("[]")
        (folder / "evaluation" / "cases.csv").write_text("a\n")
        (folder / "run.json").mkdir()
        os.mkfifo(folder / "metrics.jsonl")
    page.write(workdir, challenge, [])
    compare.write([workdir, other], root / "out")
    assert_silent(workdir, ["report.html"])
    assert len(assert_silent(root, ["out"])) == 3


def workdir_of(folder):
    folder.mkdir(parents=True)
    return folder
