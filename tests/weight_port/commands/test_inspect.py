"""The table of a weight file: whole, readable, and no wider than a terminal."""

import json

import pytest
from safetensors.numpy import save_file

from crossdim_jax.weights.file import FORMAT, load_weights, save_weights
from crossdim_jax.weights.recipe import Recipe
from tests.weight_port import tiny
from weight_port import certificate, forward
from weight_port.__main__ import main
from weight_port.commands import inspect
from weight_port.commands.making import record
from weight_port.convert import convert


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A certified 3D file."""
    with tiny.registered(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "PLANE", 64)
        source = tiny.source()
        recipe = Recipe(3, 4, "batch", "mean", "gray")
        made = convert(source, recipe)
        path = tmp_path_factory.mktemp("weights") / "w.safetensors"
        save_weights(path, made.arrays, record(source, recipe, made))
        certificate.certify(path, source=source)
    return path


def test_everything_is_shown_in_a_hundred_columns(file, capsys):
    with tiny.registered():
        assert main(["inspect", str(file)]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 100
    words = " ".join(told.split())
    weights = load_weights(file)
    for fact in (
        *("licence unknown", "inflate mean", "in_channels 4", "padding same", "eps 0.001"),
        *("depth_taps 3,3,3,5,3,5", "statistics carried", f"tensors {len(weights.arrays)}"),
        *(weights.metadata["certificate"]["content_sha256"], "agrees with the file"),
        *("stem 5 1,792 3x3x3", "blocks_2", "5x5x5"),
        *("all are the same", "not run: timm", "the taps of every kernel add up", "0.0001"),
        *("edge padding equal to 2D everywhere", "6 of 8"),
    ):
        assert fact in words, fact
    assert "PROBLEM" not in told


def test_values_of_all_stages_add_up(file):
    weights = load_weights(file)
    table = inspect._tensors(weights)[1:]
    counts = [line.split()[1:3] for line in table]
    assert sum(int(n) for n, _ in counts) == len(weights.arrays)
    total = sum(array.size for array in weights.arrays.values())
    assert sum(int(values.replace(",", "")) for _, values in counts) == total


def test_json_is_the_record(file, capsys):
    assert main(["inspect", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == load_weights(file).metadata


def test_problems_stand_out(file):
    stored = dict(load_weights(file).metadata["certificate"])
    stored["problems"] = ["timm: feature /4 differs by 0.1, expected at most 0.0001"]
    assert any("PROBLEM" in line and "/4" in line for line in inspect.certificate_lines(stored))


def test_older_files_say_what_they_lack(file, tmp_path, capsys):
    weights = load_weights(file)
    bare = {k: weights.metadata[k] for k in ("source", "id", "ndim", "padding")}
    old = tmp_path / "old.safetensors"
    save_file(dict(weights.arrays), old, {"format": FORMAT, "record": json.dumps(bare)})
    assert main(["inspect", str(old)]) == 0
    told = capsys.readouterr().out
    assert "none in the file, an older one" in told and "certificate   none" in told


def test_a_missing_file_is_one_clear_line(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "gone.safetensors")]) == 1
    assert "gone.safetensors: no such weight file" in capsys.readouterr().err
