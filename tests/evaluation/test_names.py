"""Cases whose names are not UTF-8, hold orders to a terminal, or are as long as can be.

A folder that was named in Latin-1 is no error: its case is predicted, scored and reported like the
others, on a terminal that knows ASCII only.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.report.reading import read_cases
from crossdim_jax.text import shown

NAMES = [
    os.fsdecode(b"M\xfcller"),
    "Müller 日本",
    "a\x1b[2J\x07b",
    "line\nfeed",
    "=1+1;=2",
    "<script>|`x`",
    "$x_1^2$",
    "x" * 200,
    "ok",
]
TOO_LONG = "y" * 250  # its images have names, its prediction would not

PROGRAM = """
import os, sys
import numpy as np
from pathlib import Path
from crossdim_jax.runtime import distributed
from crossdim_jax.evaluation import predict as predict_lib
from crossdim_jax.evaluation import score as evaluate
from crossdim_jax import challenges
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.data import splits
from crossdim_jax.report import page

root = Path(sys.argv[1])
challenge = challenges.get("brats", layout="plain", convention="2021", modalities=("flair",))
files = challenge.cases(root / "data", labelled=True)
image, label = files[0].images[0], files[0].label
files.append(CaseFiles(sys.argv[2], sys.argv[2], (image,), label))
splits.make(files, kind="kfold", folds=2).write(root / "run/splits.json")

def network(x):
    return np.ones((*x.shape[:3], 3), np.float32)

result = predict_lib.predict_folder(challenge, files, network, root / "run/predictions")
evaluate.evaluate_cases(
    challenge, files, root / "run/predictions", root / "run/evaluation", failed=result.failed
)
distributed.say((root / "run/evaluation/table.md").read_text(encoding="utf-8"))
distributed.say(str(page.write(root / "run", challenge, files)))
result.raise_if_failed()
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("names")
    for name in NAMES:
        folder = root / "data" / name
        folder.mkdir(parents=True)
        for kind in ("flair", "seg"):
            image = nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4))
            nib.save(image, folder / f"{name}_{kind}.nii.gz")
    environment = {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), TOO_LONG],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | environment,
        capture_output=True,
    )
    return root / "run", result


def test_one_case_too_long_to_be_written_is_the_only_one_lost(done):
    run, result = done
    error = result.stderr.decode("ascii")
    assert "ManyErrors" in error and f"1. {TOO_LONG}: " in error and "  2. " not in error
    summary = json.loads((run / "evaluation/summary.json").read_text())
    assert summary["n_cases"] == len(NAMES) and sorted(summary["truths"]) == sorted(NAMES)
    assert [case for case, _ in summary["failed"]] == [TOO_LONG]


def test_every_id_is_read_back_as_it_is(done):
    run, _ = done
    assert sorted(row["id"] for row in read_cases(run / "evaluation/cases.csv")) == sorted(NAMES)
    split = json.loads((run / "splits.json").read_text())
    assert sorted(split["train"] + split["validation"]) == sorted([*NAMES, TOO_LONG])


def test_texts_and_the_terminal_show_every_name_and_obey_none(done):
    run, result = done
    texts = [(run / name).read_text(encoding="utf-8") for name in ("report.html",)]
    texts += [
        (run / "evaluation" / n).read_text(encoding="utf-8") for n in ("table.md", "cases.csv")
    ]
    texts += [result.stdout.decode("ascii"), result.stderr.decode("ascii")]
    for text in texts:
        assert "\x1b" not in text and "\x07" not in text
    assert all(r"M\xfcller" in text and r"a\x1b[2J\x07b" in text for text in texts[:1])
    assert "<script" not in texts[0] and "This part could not be made" not in texts[0]
    assert "cannot be shown" not in texts[0]
    with (run / "evaluation/cases.csv").open(newline="", encoding="utf-8") as file:
        cells = {row["id"] for row in csv.DictReader(file)}
    assert r"M\xfcller" in cells and "'=1+1;'=2" in cells and shown("line\nfeed") in cells
