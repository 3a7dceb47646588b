"""Every command says what is wrong with a file or a flag, and keeps nothing of where files lie."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from crossdim_jax.errors import WeightsError
from crossdim_jax.weights.file import save_weights
from crossdim_jax.weights.recipe import Recipe
from tests.weight_port import tiny
from weight_port import certificate, forward, records
from weight_port.__main__ import main
from weight_port.commands.making import record
from weight_port.convert import convert

ROOT = Path(__file__).resolve().parents[2]
ORDER = "\x1b]0;x\x07"  # a new title for the window


@pytest.fixture(scope="module", autouse=True)
def _small():
    with tiny.registered(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "PLANE", 64)
        yield


@pytest.fixture
def write(tmp_path):
    """A 2D file with changes to its tensors and its record."""
    source, recipe = tiny.source(), Recipe(2, 3, "batch", None, "tile")

    def make(arrays=(), **changes):
        made = convert(source, recipe)
        held = record(source, recipe, made) | changes
        return save_weights(tmp_path / "w.safetensors", {**made.arrays, **dict(arrays)}, held)

    return make


def commands(path):
    yield from ([name, path] for name in ("inspect", "verify", "export", "inflate"))
    yield ["reestimate", path, "--volumes", "none/*.nii.gz"]
    yield ["port", "tf_efficientnet_b0", f"--checkpoint={path}", f"--out={path}.new.safetensors"]


def refused(command, capsys):
    assert main(command) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said
    return said


@pytest.mark.parametrize("kind", ["empty", "cut", "float8", "folder", "pipe", "missing"])
def test_every_command_names_a_file_that_cannot_be_read(kind, write, tmp_path, capsys):
    path = tmp_path / "bad.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        float8 = save({"a": np.zeros(8, np.uint8)}).replace(b'"U8"', b'"F8_E4M3"')
        float8 = (int.from_bytes(float8[:8], "little") + 5).to_bytes(8, "little") + float8[8:]
        content = {"empty": b"", "cut": write().read_bytes()[:-9], "float8": float8}
        path.write_bytes(content[kind])
    for command in commands(str(path)):
        assert str(path) in refused(command, capsys)


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 10**9},
        {"architecture": "nosuch"},
        {"architecture": "efficientnet_tiny_plain"},
        {"norm": "layer"},
        {"stem": "nosuch"},
        {"arrays": {"params/encoder/conv_stem/kernel": np.zeros((3, 3, 3, 17), np.float32)}},
        {"arrays": {"params/encoder/bn1/scale": np.zeros((), np.float32)}},
    ],
)
def test_a_record_that_does_not_fit_the_tensors_is_said_before_a_network_runs(
    changes, write, capsys
):
    path = str(write(**changes))
    refused(["verify", path], capsys)
    refused(["reestimate", path, "--volumes", "none/*.nii.gz"], capsys)


@pytest.mark.parametrize(
    "certificate", [{}, {"certificate": 1}, {"certificate": 1, "conditions": 3}, {"certificate": 9}]
)
def test_a_damaged_certificate_is_named_and_not_traced(certificate, write, capsys):
    status = main(["inspect", str(write(certificate=certificate))])
    said = capsys.readouterr()
    assert status == (0 if certificate.get("certificate") != 1 else 1)
    assert status == 0 or "w.safetensors: the certificate in its record is damaged" in said.err


def test_numbers_that_cannot_be_weights_are_not_ported(tmp_path, capsys):
    source = tiny.source()
    for name, change, says in (
        ("conv_stem.weight", lambda a: a * np.nan, "NaN"),
        ("conv_stem.weight", lambda a: a.astype(np.int8), "int8; expected floating"),
        ("bn1.running_var", lambda a: -a, "negative variances"),
    ):
        arrays = {**source.arrays, name: change(source.arrays[name])}
        path = tmp_path / "c.safetensors"
        save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, path)
        changed = tiny.Source(source.name, arrays, source.origin)
        with pytest.raises(WeightsError, match=f"{name}: .*{says}"):
            convert(changed, Recipe(2, 3, "batch", None, "tile"))


@pytest.mark.parametrize(
    "flag",
    [
        *("--in-channels=-1", "--in-channels=0", "--in-channels=3.5", "--in-channels=99999999999"),
        *("--depth-kernels=0", "--depth-kernels=-3", "--depth-kernels=1000000000"),
        *("--seed=-1", "--seed=4294967296", "--seed=nan", "--ndim=4"),
    ],
)
def test_numbers_no_file_can_be_made_with_are_refused(flag, tmp_path, capsys):
    name = flag.partition("=")[0]
    try:
        status = main(["tf_efficientnet_b0", "--ndim=3", "--random", flag, f"--out={tmp_path}"])
    except SystemExit as error:
        status = error.code
    said = capsys.readouterr().err
    assert status in (1, 2) and name in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--patches=0", "--batch=-1", "--patch=99999999", "--seed=-1"])
def test_numbers_nothing_can_be_measured_with_are_refused(flag, write, capsys):
    try:
        status = main(["reestimate", str(write()), "--volumes", "none/*.nii.gz", flag])
    except SystemExit as error:
        status = error.code
    assert status in (1, 2) and flag.partition("=")[0] in capsys.readouterr().err


def test_no_folder_of_this_machine_is_kept_in_what_is_passed_on(write, tmp_path):
    path = write()
    absent = records.without_folders(f"no such file: {tmp_path}/cache/x.bin, see https://a.b/c/d")
    assert absent == "no such file: x.bin, see https://a.b/c/d"
    certificate.certify(path, source=tiny.source(), absent=absent)
    assert main(["export", str(path)]) == 1  # without a head; the inflated file goes out as well
    assert main(["inflate", str(path), f"--out={tmp_path}/deep", "--no-certificate"]) == 0
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) == 3  # two files and a certificate
    for file in written:
        for place in (tmp_path, Path.home() / "x", Path.cwd()):
            assert str(place).removesuffix("/x").encode() + b"/" not in file.read_bytes()


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "weight_port", "list"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_names_and_records_of_unknown_files_give_the_terminal_no_orders(write, tmp_path, capsys):
    path = str(write(arrays={f"params/encoder/{ORDER}": np.zeros(3, np.float32)}, licence=ORDER))
    said = ""
    for command in commands(path):
        main(command)
        told = capsys.readouterr()
        said += told.out + told.err
    assert "\x1b" not in said and "\x07" not in said
    assert said.count(r"\x1b]0;x\x07") > 2
    assert main(["inspect", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["licence"] == ORDER
    with pytest.raises(SystemExit):
        main(["inspect", path, ORDER])
    assert r"unknown arguments: \x1b]0;x\x07" in capsys.readouterr().err
