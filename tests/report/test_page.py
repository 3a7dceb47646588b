import dataclasses
import errno
import html
import html.parser
import json
import os
import re
import shutil
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.challenges.brats import challenge as brats
from crossdim_jax.errors import DataError
from crossdim_jax.evaluation import score
from crossdim_jax.report import page, viewer
from crossdim_jax.report.reading import mean_dice, read_metrics, select
from tests import toy

REGIONS = ("WT", "TC", "ET")
VOID = {"meta", "img", "br", "link"}


class Checker(html.parser.HTMLParser):
    """Collects tags and text; fails on a tag that is closed out of turn."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.stack, self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(path):
    text = path.read_text(encoding="utf-8")
    found = Checker(text)
    without_images = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", text)
    assert "//" not in without_images and "url(" not in without_images
    assert "@import" not in without_images
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert "href" not in attributes and not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,") and attributes["alt"]
    assert [attrs["id"] for tag, attrs in found.tags if tag == "h2"] == [
        "summary",
        "scores",
        "training",
        "cases",
        "configuration",
    ]
    return found, "".join(found.text)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with two cases of two modalities, neither T2, predictions and scores."""
    root = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    challenge = brats.BraTS(layout="plain", convention="2021", modalities=("flair", "t1"))
    (root / "workdir/predictions").mkdir(parents=True)
    for i, name in enumerate(("pat <1>", "pat&2")):
        (root / "data" / name).mkdir(parents=True)
        image = np.zeros((16, 18, 12), np.float32)
        image[1:-1, 1:-1, 1:-1] = rng.random((14, 16, 10)) + 1
        label = np.zeros(image.shape, np.uint8)
        label[4:10, 5:12, 3:8], label[5:8, 6:9, 4:7], label[6, 7, 5] = 2, 1, 4
        affine = np.diag([1.0, 1, 2, 1])
        for modality in challenge.modalities:
            path = root / "data" / name / f"{name}_{modality}.nii.gz"
            nib.save(nib.Nifti1Image(image, affine), path)
        nib.save(nib.Nifti1Image(label, affine), root / "data" / name / f"{name}_seg.nii.gz")
        label[4 : 5 + i] = 0
        nib.save(nib.Nifti1Image(label, affine), root / f"workdir/predictions/{name}.nii.gz")
    files = challenge.cases(root / "data", labelled=True)
    workdir = root / "workdir"
    score.evaluate_cases(
        challenge,
        files,
        workdir / "predictions",
        workdir / "evaluation",
        provenance={"checkpoint_step": 20, "flips": "<all>"},
        progress=False,
    )
    rows = [
        {"kind": "train", "step": i, "epoch": i / 10, "loss": 2 / i, "learning_rate": 1e-3}
        | {"images_per_s": 1.5, "seconds": 61.0 * i, "dice": 0.5, "dice_WT": 0.5}
        for i in range(1, 21)
    ]
    rows.append({"kind": "validation", "step": 20, "epoch": 2.0, "dice": 0.75, "dice_WT": 0.75})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(lines + '{"kind": "tra')
    return workdir, challenge, files


@pytest.fixture
def sketched():
    with toy.sketched():
        yield


@pytest.fixture
def copy(run, tmp_path):
    workdir, challenge, files = run
    shutil.copytree(workdir, tmp_path / "workdir")
    return tmp_path / "workdir", challenge, files


def test_a_whole_run_makes_one_offline_page(run):
    workdir, challenge, files = run
    config = {"model": {"name": "dx<net>"}, "optim": {"note": "</pre><script>x"}}
    path = page.write(workdir, challenge, files, config=config)
    assert path == workdir / "report.html"
    found, text = check(path)
    assert sum(tag == "img" for tag, _ in found.tags) == 4  # curves, panel, best, worst
    for name in ("curves", "panel", "views_best", "views_worst"):
        assert (workdir / f"figures/{name}.png").exists()
    assert "dx<net>" in text and "</pre><script>x" in text  # escaped, so text again once parsed
    assert "pat <1>" in text and "pat&2" in text
    assert "brats2022" in text and "Mean" in text and "20 min 20 s" in text
    assert "Checkpoint step20" in text and "Flips<all>" in text
    assert "75.00 % (mean over regions)" in text
    assert "1 lines of metrics.jsonl could not be read" in text
    assert not list(workdir.glob("*.tmp"))


def test_an_empty_folder_says_what_is_missing_and_how_to_make_it(run, tmp_path):
    _, challenge, files = run
    found, text = check(page.write(tmp_path, challenge, files, config={}))
    assert not any(tag == "img" for tag, _ in found.tags)
    for what in ("evaluation/summary.json", "metrics.jsonl", "evaluation/cases.csv", "config.json"):
        assert f"Not here yet: {what}" in text
    assert f"--workdir=.../{tmp_path.name} --mode=evaluate" in text


def test_a_cross_validation_names_the_reports_of_its_folds(copy, sketched):
    workdir, challenge, files = copy
    (workdir / "metrics.jsonl").unlink()
    (workdir / "fold_0").mkdir()
    (workdir / "fold_0" / "report.html").touch()
    _, text = check(page.write(workdir, challenge, files, config={"a": 1}))
    assert "Each fold has a report of its own:fold_0/report.html" in text
    assert "Not here yet" not in text


def test_a_run_without_held_out_cases_has_its_curves_and_config(run, sketched, tmp_path):
    workdir, challenge, _ = run
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:20]))  # of the training alone
    found, text = check(page.write(tmp_path, challenge, [], config={"model": {"name": "dxnet"}}))
    assert [attrs["alt"][:13] for tag, attrs in found.tags if tag == "img"] == ["Training loss"]
    assert "dxnet" in text and "20 min 20 s" in text
    assert text.count("No case was held out") == 2
    assert "Not here yet" not in text and "could not be made" not in text
    assert "no validation yet" not in text


def test_config_is_read_from_the_run_unless_given(copy, sketched):
    workdir, challenge, files = copy
    (workdir / "config.json").write_text('{"model": {"name": "from the run"}}')
    assert "from the run" in check(page.write(workdir, challenge, files))[1]


def test_missing_parts_leave_the_rest(copy, sketched):
    workdir, challenge, files = copy
    for path in (workdir / "predictions").iterdir():
        path.unlink()
    (workdir / "evaluation/summary.json").unlink()
    found, text = check(page.write(workdir, challenge, files[:1], config={"a": 1}))
    assert "Not here yet: evaluation/summary.json" in text
    assert "its images are not among the cases" in text and files[1].id in text
    assert sum(tag == "img" for tag, _ in found.tags) == 3  # curves, panel, the one case left


DAMAGE = {
    "config.json": "[1]",
    "metrics.jsonl": None,  # a folder
    "evaluation/summary.json": '{"regions": ["WT"]}',
    "evaluation/cases.csv": "id;dice_WT\na;good\n",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_part_is_named_in_its_place_and_the_others_stand(copy, sketched, name):
    workdir, challenge, files = copy
    (workdir / "config.json").write_text('{"model": {"name": "dxnet"}}')
    (workdir / name).unlink()
    if DAMAGE[name] is None:
        (workdir / name).mkdir()
    else:
        (workdir / name).write_text(DAMAGE[name])
    found, text = check(page.write(workdir, challenge, files))
    assert f"{name}: " in text and str(workdir) not in text and "could not be made" not in text
    lost = {"metrics.jsonl": 1, "evaluation/cases.csv": 3}.get(name, 0)
    assert sum(tag == "img" for tag, _ in found.tags) == 4 - lost


def test_a_table_saved_by_a_spreadsheet_makes_the_same_page(copy, sketched):
    workdir, challenge, files = copy
    path = workdir / "evaluation/cases.csv"
    config = {"a": 1}
    text = check(page.write(workdir, challenge, files, config=config))[1]
    rows = [line.split(",") for line in path.read_text().splitlines()]
    saved = "\r\n".join(";".join(cell.replace(".", ",") for cell in row) for row in rows)
    path.write_text(f"\ufeff{saved}\r\n", encoding="utf-8", newline="")
    assert check(page.write(workdir, challenge, files, config=config))[1] == text


@pytest.mark.parametrize("what", ["prediction", "image"])
def test_one_damaged_file_loses_its_case_alone(copy, sketched, what, tmp_path):
    workdir, challenge, files = copy
    if what == "prediction":
        (workdir / f"predictions/{files[0].id}.nii.gz").write_bytes(b"\x1f\x8bnonsense")
        left, told = 4, "no prediction"
    else:
        bad = tmp_path / "secret place" / files[0].images[0].name
        bad.parent.mkdir()
        bad.write_bytes(b"nonsense")
        files = [dataclasses.replace(files[0], images=(bad, files[0].images[1])), files[1]]
        left, told = 3, f"{files[0].id}: DataError: {bad.name}"
    found, text = check(page.write(workdir, challenge, files, config={"a": 1}))
    assert sum(tag == "img" for tag, _ in found.tags) == left
    assert (told in text) == (what == "image") and "secret" not in text
    assert "could not be made" not in text


def test_the_challenges_own_figures_go_without_a_damaged_prediction(copy, sketched):
    workdir, challenge, files = copy

    class Drawing(brats.BraTS):
        def figures(self, evaluated):
            for case in evaluated:
                self.read_prediction(case.prediction)
            curves = page.figures.curves([], [], ())
            return [("mine", curves, f"mine of {len(evaluated)} cases")]

    drawing = Drawing(layout="plain", convention="2021", modalities=("flair", "t1"))
    (workdir / f"predictions/{files[0].id}.nii.gz").write_bytes(b"nonsense")
    text = page.write(workdir, drawing, files, config={"a": 1}).read_text(encoding="utf-8")
    assert "mine of 1 cases" in text and "figures lack these cases" in text
    assert f"{html.escape(files[0].id)}: DataError: predictions/{html.escape(files[0].id)}" in text


def test_a_figure_that_cannot_be_written_leaves_the_old_one_and_is_named(copy, monkeypatch):
    workdir, challenge, files = copy
    shutil.rmtree(workdir / "figures", ignore_errors=True)
    path = page.figures.save(page.figures.curves([], [], ()), workdir / "figures/curves.png")
    before = path.read_bytes(), path.with_suffix(".pdf").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="curves.png: the figure cannot be written .No space left"):
        page.figures.save(page.figures.curves([], [], ("WT",)), path)
    assert (path.read_bytes(), path.with_suffix(".pdf").read_bytes()) == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["curves.pdf", "curves.png"]
    with pytest.raises(DataError, match="report.html: the report cannot be written .No space left"):
        page.write(workdir, challenge, files, config={"a": 1})


def test_a_section_that_breaks_does_not_break_the_page(copy, sketched, monkeypatch, caplog):
    workdir, challenge, files = copy

    def broken(*_):
        raise ZeroDivisionError("<oh>")

    monkeypatch.setattr(page.figures, "curves", broken)
    _, text = check(page.write(workdir, challenge, files, config={"a": 1}))
    assert "This part could not be made: ZeroDivisionError: <oh>" in text
    assert "broken" in caplog.text


def test_problems_of_the_evaluation_are_shown(copy, sketched):
    workdir, challenge, files = copy
    path = workdir / "evaluation/summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"missing": [["pat9", "no file"]]}))
    _, text = check(page.write(workdir, challenge, files, config={"a": 1}))
    assert "1 of the cases not scored, because there is no prediction" in text
    assert "pat9: no file" in text


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 101])
def test_chosen_cases(n):
    rows = [{"id": f"{i:03}", "dice_WT": i / n, "dice_TC": i / n} for i in range(n)]
    chosen = select(rows[::-1], ("WT", "TC"))
    labels = ",\n".join(label for label, _ in chosen).split(",\n")
    assert labels == ["Best", "75th percentile", "Median", "25th percentile", "Worst"]
    ids = [int(row["id"]) for _, row in chosen]
    assert ids == sorted(set(ids), reverse=True)  # no case twice, best first
    assert len(ids) == min(n, 5) and ids[0] == n - 1 and ids[-1] == 0
    if n == 101:
        assert ids == [100, 75, 50, 25, 0]


def test_a_percentile_is_the_case_nearest_to_its_rank():
    rows = [{"id": str(i), "dice_WT": i} for i in range(4)]  # ranks 0.75, 1.5 and 2.25
    assert [(label, row["id"]) for label, row in select(rows, ("WT",))] == [
        ("Best", "3"),
        ("75th percentile,\nMedian", "2"),
        ("25th percentile", "1"),
        ("Worst", "0"),
    ]


def test_mean_dice_leaves_out_what_is_undefined():
    assert mean_dice({"dice_WT": 0.5, "dice_TC": float("nan"), "dice_ET": 1.0}, REGIONS) == 0.75
    assert mean_dice({"dice_WT": float("nan")}, REGIONS) == 0


def test_steps_logged_twice_count_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [(1, 9.0), (2, 8.0), (2, 7.0), (3, float("nan"))]
    text = "".join(
        json.dumps({"kind": "train", "step": s, "epoch": s, "loss": v}) + "\n" for s, v in rows
    )
    path.write_text(text + '\n[]\n{"kind": "train", "step": 4}\n')
    train, validation, unread = read_metrics(path)
    assert [row["loss"] for row in train] == [9.0, 7.0, None]
    assert validation == [] and unread == 2
    assert read_metrics(tmp_path / "absent") == ([], [], 0)


def test_viewer_pages_that_are_there_are_linked_from_the_folder_itself(copy, sketched):
    workdir, challenge, files = copy
    for case in files[:2]:
        path = viewer.path(workdir, case.id)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    text = page.write(workdir, challenge, files).read_text(encoding="utf-8")
    links = [attrs["href"] for tag, attrs in Checker(text).tags if tag == "a"]
    assert len(links) == 2 and all((workdir / unquote(link)).is_file() for link in links)
