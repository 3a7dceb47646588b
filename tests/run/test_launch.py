"""The command, as a user runs it; and what it says to bad input."""

import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.challenges.brats import phantom
from crossdim_jax.errors import CrossdimError
from crossdim_jax.run import config as config_lib
from crossdim_jax.run import experiment
from crossdim_jax.storage import run_folder
from tests.report.test_compare import write_run

ROOT = Path(__file__).resolve().parents[2]
DEBUG = "--config=configs/brats_dxnet.py:debug"


# One CPU device; of a flag that is given twice, the last counts.
ONE_DEVICE = " --xla_force_host_platform_device_count=1"
ENVIRONMENT = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"] + ONE_DEVICE}


def launch_anew(*arguments):
    """Runs launch.py on one CPU device as a user does; returns the finished process."""
    return subprocess.run(
        [sys.executable, "launch.py", *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )


# Runs launch.py for each line of arguments, in a copy of a process that has its imports already.
SERVER = """
import gc, json, os, runpy, sys
from matplotlib.backends import backend_agg, backend_pdf
from crossdim_jax.report import compare
from crossdim_jax.run import launch
from tests import toy

gc.freeze()  # copies share it, and do not go through it again
for line in sys.stdin:
    arguments, *logs = json.loads(line)
    if os.fork() == 0:
        for number, log in enumerate(logs, 1):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """`launch_anew` without the seconds that the imports take."""
    folder, numbers = tmp_path_factory.mktemp("launched"), itertools.count()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def run(*arguments, program="launch.py"):
            arguments, number = [str(program), *map(str, arguments)], next(numbers)
            logs = [folder / f"{number}.{stream}" for stream in ("out", "err")]
            print(json.dumps([arguments, *map(str, logs)]), file=server.stdin, flush=True)
            status = int(server.stdout.readline())
            out, err = (log.read_text() for log in logs)
            return subprocess.CompletedProcess(arguments, status, out, err)

        yield run


def fails(process, *parts):
    """The command failed with one clear message, which holds all of `parts`."""
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert "error: " in process.stderr
    for part in parts:
        assert part in process.stderr


@pytest.fixture(
    scope="module",
    params=["--config=tests/run/short.py", pytest.param(DEBUG, marks=pytest.mark.slow)],
    ids=["short", "whole"],
)
def run(request, tmp_path_factory):
    """A finished debug run: its folder and the flags that name it."""
    folder = tmp_path_factory.mktemp("run")
    flags = [
        request.param,
        f"--workdir={folder / 'work'}",
        f"--config.data.root={folder / 'cases'}",
        f"--config.data.cache={folder / 'cache'}",
    ]
    process = launch_anew(*flags)
    assert process.returncode == 0, process.stderr
    assert process.stdout.rstrip().endswith(str(folder / "work" / "report.html"))
    return folder / "work", flags


def test_training_leaves_everything_a_run_folder_holds(run):
    workdir, _ = run
    split = json.loads((workdir / "splits.json").read_text())
    assert len(split["train"]) == len(split["validation"]) == 2
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["train", "train", "validation"]
    assert np.isfinite([line["loss"] for line in lines[:2]]).all()
    predictions = sorted(p.name for p in (workdir / "predictions").iterdir())
    assert predictions == [f"{case}.nii.gz" for case in split["validation"]]
    assert {"cases.csv", "summary.json", "table.md"} <= {
        p.name for p in (workdir / "evaluation").iterdir()
    }
    assert json.loads((workdir / "config.json").read_text())["model"]["name"] == "dxnet"
    assert (workdir / "report.html").read_text().count("data:image/png;base64,") == 4


def test_the_same_command_again_trains_no_further_and_ends_the_same(launch, run):
    workdir, flags = run
    before = (workdir / "metrics.jsonl").read_text()
    table = (workdir / "evaluation" / "cases.csv").read_text()
    assert launch(*flags).returncode == 0
    assert (workdir / "metrics.jsonl").read_text() == before
    assert (workdir / "evaluation" / "cases.csv").read_text() == table


def test_a_folder_in_use_is_refused(launch, run):
    workdir, flags = run
    with run_folder.only_process(workdir, "training"):
        fails(launch(*flags), "is training in this run folder", f"process {os.getpid()} on host")


def test_another_config_is_refused_in_a_used_folder(launch, run):
    _, flags = run
    process = launch(*flags, "--config.optim.learning_rate=0.01")
    fails(process, "optim.learning_rate", "0.001 -> 0.01", "--workdir")


def test_another_network_than_the_trained_one_is_refused(launch, run):
    _, flags = run
    process = launch(*flags, "--mode=evaluate", "--config.model.norm=group")
    fails(process, "model.norm", "None -> 'group'")


def test_prediction_goes_on_after_a_faulty_case_and_skips_what_is_there(launch, run, tmp_path):
    workdir, flags = run
    cases, output = tmp_path / "new", tmp_path / "out"
    for folder in phantom.generate(cases, 3, shape=(32, 36, 32), seed=5):
        (folder / f"{folder.name}_seg.nii.gz").unlink()  # new cases have no labels
    truncated = cases / "Phantom_001" / "Phantom_001_t2.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:2000])
    predict = [*flags, "--mode=predict", f"--input={cases}", f"--output={output}"]

    process = launch(*predict)
    fails(process, "Phantom_001", str(truncated))
    assert sorted(p.name for p in output.iterdir()) == ["Phantom_000.nii.gz", "Phantom_002.nii.gz"]
    for name in ("Phantom_000", "Phantom_002"):
        image = nib.load(cases / name / f"{name}_flair.nii.gz")
        label = nib.load(output / f"{name}.nii.gz")
        assert label.shape == image.shape
        assert label.get_data_dtype() == np.uint8 and image.get_data_dtype() == np.int16
        np.testing.assert_array_equal(label.affine, image.affine)
        assert set(np.unique(label.dataobj)) <= {0, 1, 2, 4}

    mine = output / "Phantom_000.nii.gz"
    mine.write_bytes(b"corrected by hand")
    fails(launch(*predict), "Phantom_001")
    assert mine.read_bytes() == b"corrected by hand"
    shutil.rmtree(cases / "Phantom_001")
    process = launch(*predict, "--overwrite")
    assert process.returncode == 0 and "2 written" in process.stdout
    assert nib.load(mine).shape == nib.load(cases / "Phantom_000/Phantom_000_t1.nii.gz").shape


def test_pages_to_scroll_through_held_out_and_through_new_cases(launch, run, tmp_path):
    workdir, flags = run
    phantom.generate(tmp_path / "new", 2, shape=(32, 36, 32), seed=5)
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    seg = tmp_path / "new" / "Phantom_001" / "Phantom_001_seg.nii.gz"
    shutil.copy(seg, predictions / "Phantom_001.nii.gz")
    new = [f"--input={tmp_path / 'new'}", f"--output={predictions}"]
    mine, theirs = (launch(*flags, "--mode=view", *more) for more in ([], new))
    assert mine.returncode == 0, mine.stderr
    split = json.loads((workdir / "splits.json").read_text())
    pages = sorted(path.stem for path in (workdir / "viewer").iterdir())
    assert pages == split["validation"]
    assert all(f"viewer/{case}.html" in (workdir / "report.html").read_text() for case in pages)
    fails(theirs, "Phantom_000.nii.gz", "is not there")  # and the other case is shown
    assert [path.stem for path in (predictions / "viewer").iterdir()] == ["Phantom_001"]


def test_every_faulty_case_is_reported_at_once(launch, tmp_path):
    cases = tmp_path / "cases"
    folders = phantom.generate(cases, 9, shape=(32, 36, 32))

    def edit(number, modality, change):
        path = folders[number] / f"{folders[number].name}_{modality}.nii.gz"
        image = nib.load(path)
        voxels, affine = change(np.asarray(image.dataobj).astype(np.float32), image.affine.copy())
        nib.save(nib.Nifti1Image(voxels, affine), path)
        return str(path)

    def with_nan(voxels, affine):
        voxels[3, 3, 3] = np.nan
        return voxels, affine

    named = [
        edit(0, "t1", with_nan),
        edit(1, "t2", lambda v, a: (np.zeros_like(v), a)),
        edit(2, "seg", lambda v, a: (np.where(v == 4, 3, v) + 0, a)),
        edit(3, "flair", lambda v, a: (np.stack([v, v], -1), a)),
        edit(4, "t1ce", lambda v, a: (v, a + 1.0)),
    ]
    path = folders[5] / f"{folders[5].name}_t1.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()))[:-100])
    # As somebody's own data: generated phantoms would be repaired.
    flags = ["--config=configs/brats_dxnet.py", f"--workdir={tmp_path / 'work'}"]
    flags += [f"--config.data.root={cases}", f"--config.data.cache={tmp_path / 'cache'}"]
    flags += ["--config.challenge.layout=2021", "--config.weights.file="]
    flags += ["--config.data.num_processes=0"]
    missing = folders[6] / f"{folders[6].name}_t2.nii.gz"
    missing.unlink()
    process = launch(*flags)
    fails(process, *named, str(path), missing.name, "(7 faulty)")
    assert not (tmp_path / "work" / "splits.json").exists()

    # The advice is to repair or remove them: then the run starts.
    for folder in folders[:7]:
        shutil.rmtree(folder)
    flags += ["--config.data.patch=(32,32,32)", "--config.optim.freeze=('nothing',)"]
    fails(launch(*flags), "'nothing'", "matches no path")


MISTAKES = [
    (["--config.model.drop_rate=0.1"], ["drop_rate", "drop_path_rate"]),
    (["--config.model.encoder=resnet"], ["resnet", "efficientnet_b0"]),
    (["--config.train.loss=focal"], ["train.loss", "dice_bce"]),
    (["--config.data.patch=(40,64,64)"], ["data.patch", "multiples of 32"]),
    (["--config.weights.file=", "--config.data.root=nowhere"], ["nowhere"]),
    (["--config.weights.file="], ["config.data.root", "--config.data.root=/path"]),
    (
        ["--config.data.root=.", "--config.weights.file=nowhere.safetensors"],
        ["nowhere.safetensors", "weight_port"],
    ),
    (["--config.train.epochs=0"], ["train.epochs=0"]),
    (["--config.inference.overlap=1.0"], ["inference.overlap=1.0"]),
    (["--config.mesh.depth=3"], ["depth=3"]),
]


# Found where the experiment is built, which takes no process of its own.
WHEN_BUILT = ("model.encoder", "train.loss", "data.patch", "train.epochs", "inference.overlap")
BUILT = [
    row for row in MISTAKES if row[0][0].startswith(tuple(f"--config.{n}=" for n in WHEN_BUILT))
]


@pytest.mark.parametrize(("flags", "parts"), BUILT, ids=[flags[-1] for flags, _ in BUILT])
@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
def test_mistakes_are_found_when_the_experiment_is_built(flags, parts, tmp_path):
    with pytest.raises(CrossdimError) as caught:
        experiment.build(config_lib.read("configs/brats_dxnet.py", flags), tmp_path / "work")
    assert all(part in str(caught.value) for part in parts)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [pytest.param(*row, marks=pytest.mark.slow if row in BUILT[1:] else ()) for row in MISTAKES],
    ids=[flags[-1] for flags, _ in MISTAKES],
)
def test_mistakes_in_the_config_are_one_clear_message(launch, flags, parts, tmp_path):
    common = ["--config=configs/brats_dxnet.py", f"--workdir={tmp_path / 'work'}"]
    fails(launch(*common, *flags), *parts)


def test_a_missing_config_file_is_one_failure_not_two(launch, tmp_path):
    process = launch(f"--config={tmp_path}/gone.py", "--workdir=unused")
    fails(process)
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("error: cannot read the config: [Errno 2] No such file or directory: ")
    assert f"'{tmp_path}/gone.py'" in last and last.count("gone.py") == 1


def test_comparing_runs_needs_no_config(launch, tmp_path):
    runs = [write_run(tmp_path / n, "dsnet", 0.9) for n in ("a", "b")]
    runs = ",".join(map(str, runs))
    process = launch("--mode=report", f"--output={tmp_path / 'out'}", f"--workdir={runs}")
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == str(tmp_path / "out" / "comparison.html")


TELLING = r"""
import logging, os, warnings
from absl import app
from crossdim_jax.run import launch

name = os.fsdecode(b"M\xfcller\x1b[2J")

def build(*_, **__):
    logging.getLogger("a.library").warning("of %s", name)
    warnings.warn(f"in {name}")
    try:
        raise OSError(f"at {name}")
    except OSError as error:
        logging.getLogger("crossdim_jax.x").error("failed", exc_info=error)
    raise SystemExit(3)

launch.experiment.build = build
app.run(launch.main, flags_parser=launch.parse)
"""


def test_what_libraries_say_of_files_gives_the_terminal_no_orders(launch, tmp_path):
    program = tmp_path / "telling.py"
    program.write_text(TELLING)
    process = launch(DEBUG, f"--workdir={tmp_path}", program=program)
    assert process.returncode == 3, process.stderr
    assert "\x1b" not in process.stderr
    for word in ("] of", "UserWarning: in", "OSError: at"):
        assert word + r" M\xfcller\x1b[2J" in process.stderr


def test_a_run_folder_that_cannot_be_made_is_named(launch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    cases = tmp_path / "cases"
    flags = [DEBUG, f"--config.data.root={cases}", f"--config.data.cache={tmp_path / 'cache'}"]
    fails(launch(*flags, f"--workdir={tmp_path / 'file' / 'run'}"), str(tmp_path / "file"))
