"""The command as a program, and what it refuses: flags, configs, and files in the way."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crossdim_jax.errors import ConfigError
from crossdim_jax.weights.file import load_weights
from tests.weight_port import short
from weight_port import plan
from weight_port.__main__ import main

pytest.importorskip("torch")
pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parents[2]
# ml_collections 1.1 reads config files in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)
NAME = "tf_efficientnet_b0.ns_jft_in1k"


@pytest.fixture(scope="module", autouse=True)
def _short():
    with short.cut():
        yield


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ([], "either a timm name or --config"),
        ([NAME, "--config=x.py"], "either a timm name or --config"),
        (["--config=x.py", "--norm=batch"], "--norm: the config says this"),
        ([NAME, "--config.model.norm=batch"], "overrides need --config"),
        ([NAME, "--inflat=mean"], "unknown arguments: --inflat=mean"),
        ([NAME, "--random", "--license=mit"], "--license goes with --checkpoint"),
        ([NAME, "--random", "--checkpoint=x"], "not allowed with"),
    ],
)
def test_flags_that_make_no_sense(command, match, capsys):
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--depth-kernels=1,x"], "--depth-kernels=1,x: expected a number of taps"),
        (["--depth-kernels=1,3"], "depth_kernels=(1, 3): found 2 entries, expected one, or 8"),
        (["--inflate-at=center"], "expected PATTERN=MODE"),
        (["--inflate-at=blocks_7_.*=center"], "matches no path"),
        (["--inflate=acs", "--depth-kernels=3"], "blocks_2_0/conv_dw/kernel: 5x5, 3 taps"),
        (["--inflate=acs", "--factorised"], "'acs' is no product"),
        (["--norm=batch"], "'repeat' cannot keep BatchNorm"),
        (["--norm=instance", "--statistics=reestimate"], "'instance' keeps no running statistics"),
    ],
)
def test_depth_flags_that_make_no_sense_cost_no_download(port, flags, match, tmp_path, capsys):
    """No checkpoint is given: what is wrong is said before one is looked for."""
    assert port([NAME, "--ndim=3", *flags, f"--out={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert match in said and "download" not in said


def test_weights_made_for_group_norm_need_it_or_new_statistics(port, tmp_path, capsys):
    command = ["efficientnet_b0_gn", "--random", f"--out={tmp_path}"]
    assert port(command) == 0  # its own norm is the default
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-2d-3ch-tile-group.safetensors")
    assert port([*command, "--norm=batch"]) == 1
    assert "efficientnet_b0_gn is made for norm 'group'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("--config.model.encoder=efficientnet_b4", "architecture: found 'efficientnet_b0'"),
        ("--config.model.padding=symmetric", "padding: found 'same', expected 'symmetric'"),
        ("--config.model.encoder_eps=1e-5", "eps: found 0.001, expected 1e-05"),
        ("--config.model.norm=batch", "'repeat' cannot keep BatchNorm"),
        ("--config.weights.inflate=cubic", "'cubic' is unknown; known"),
        ("--config.weights.source=alexnet", "not a supported timm name"),
        ("--config.weights.source=", "nothing to port"),
        ("--config.weights.inflatte=mean", "inflatte"),
        ("--config.model.encoder=resnet", "efficientnet_b0"),
    ],
)
def test_configs_that_would_not_load_are_refused_before_writing(
    port, override, match, config, checkpoint, tmp_path, capsys
):
    assert port([f"--config={config}", override, f"--checkpoint={checkpoint}"]) == 1
    assert match in capsys.readouterr().err
    assert not (tmp_path / "ported.safetensors").exists()


def test_faulty_configs_are_named(port, tmp_path, capsys):
    assert port([f"--config={tmp_path}/gone.py:demo"]) == 1
    assert "gone.py: no such config file" in capsys.readouterr().err
    (tmp_path / "bad.py").write_text("def get_config(arg):\n    raise KeyError(arg)\n")
    with pytest.raises(ConfigError, match="bad.py:demo: KeyError: 'demo'"):
        plan.of_config(f"{tmp_path}/bad.py:demo")


@pytest.mark.parametrize(
    "field",
    [
        *("model.name", "data.patch"),
        *("weights.source", "weights.inflate", "weights.stem", "weights.file"),
        *("weights.skip", "weights.ignore"),
    ],
)
def test_a_config_without_a_field_that_porting_needs(field, config):
    section, key = field.split(".")
    config.write_text(config.read_text().replace(f'"{key}":', f'"not_{key}":'))
    with pytest.raises(ConfigError, match=f"experiment.py: found no field config.{field}"):
        plan.of_config(str(config))


def test_existing_files_are_kept_unless_told_otherwise(port, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    command = ["tf_efficientnet_b0", "--random", f"--out={out}"]
    assert port(command) == 0
    before = out.read_bytes()
    assert port([*command, "--seed=1"]) == 1
    assert f"error: {out} exists" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert port([*command, "--seed=1", "--overwrite"]) == 0
    assert out.read_bytes() != before
    assert list(tmp_path.iterdir()) == [out]


def test_an_existing_file_of_another_recipe_is_described(
    port, config, checkpoint, tmp_path, capsys
):
    """The default name may promise another mode than the overrides ask for."""
    out = tmp_path / "ported.safetensors"
    again = [f"--config={config}", f"--checkpoint={checkpoint}"]
    assert port(again) == 0
    before = out.read_bytes()
    assert port(again) == 1
    said = capsys.readouterr().err
    assert f"error: {out} exists and holds" in said and "3D by repeat" in said
    assert "That is what the config asks for" in said and "keep both" not in said

    assert port([*again, "--config.weights.inflate=mean"]) == 1
    said = capsys.readouterr().err
    assert "3D by repeat" in said and "inflate: found 'repeat', expected 'mean'" in said
    other = tmp_path / f"{NAME}-3d-mean-16ch-tile-instance.safetensors"
    assert f"  --config.weights.file={other}\n" in said and "--overwrite" in said
    assert out.read_bytes() == before and not other.exists()
    mine = [*again, "--config.weights.inflate=mean", f"--config.weights.file={other}"]
    assert port(mine) == 0  # the advice works
    assert load_weights(other).metadata["inflate"] == "mean"

    out.write_bytes(b"something else")
    assert port(again) == 1
    said = capsys.readouterr().err
    assert "exists and is not a weight file" in said and "--overwrite" in said
    assert out.read_bytes() == b"something else"


def test_a_folder_that_cannot_be_written_is_named(port, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert port([NAME, "--random", f"--out={tmp_path}/file/x.safetensors"]) == 1
    assert "the weight file cannot be written" in capsys.readouterr().err


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


OFFLINE = (
    "cannot download the weights",
    f"fetch https://huggingface.co/timm/{NAME}/resolve/main/model.safetensors elsewhere",
    "--checkpoint=FILE",
)


def test_a_download_without_a_network(port, tmp_path, monkeypatch, capsys):
    """One clear error, exit 1, nothing written."""

    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    assert port([NAME, f"--out={tmp_path / 'weights'}"]) == 1
    said = capsys.readouterr().err
    assert all(part in said for part in OFFLINE) and "(no route)" in said
    assert not (tmp_path / "weights").exists()


@pytest.mark.slow
def test_the_real_command_offline(tmp_path):
    """A program of its own, which takes long to start with timm: likewise, and no traceback."""
    done = run(
        *("-m", "weight_port", NAME, f"--out={tmp_path / 'weights'}"),
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "empty"),
    )
    assert done.returncode == 1
    assert all(part in done.stderr for part in OFFLINE) and "Traceback" not in done.stderr
    assert not (tmp_path / "weights").exists()


def test_safetensors_need_neither_torch_nor_timm(port, tmp_path, checkpoint):
    """The same bytes go in and come out as with them installed."""
    program = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = None\n"
        "from tests.weight_port import short\n"
        "from weight_port.__main__ import main\n"
        "with short.cut():\n"
        f"    sys.exit(main([{NAME!r}, '--checkpoint={checkpoint}',"
        f" '--out={tmp_path}/a.safetensors', '--no-certificate']))"
    )
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    assert port([NAME, f"--checkpoint={checkpoint}", f"--out={tmp_path}/b.safetensors"]) == 0
    ours, theirs = (load_weights(tmp_path / f"{x}.safetensors").arrays for x in "ab")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
