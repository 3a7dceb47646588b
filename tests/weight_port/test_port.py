"""What porting writes and prints, from a name or a config to a file that the network loads."""

import contextlib
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from crossdim_jax import models
from crossdim_jax.errors import WeightsError
from crossdim_jax.run import config as config_lib
from crossdim_jax.run import experiment, initial_state
from crossdim_jax.weights.file import load_weights
from crossdim_jax.weights.merge import merge, requirements
from crossdim_jax.weights.recipe import Recipe
from crossdim_jax.weights.record import check_fit
from tests.weight_port import short
from weight_port import certificate, plan
from weight_port.__main__ import main
from weight_port.commands import making

pytest.importorskip("torch")
pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parents[2]
# ml_collections 1.1 reads config files in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)
NAME = "tf_efficientnet_b0.ns_jft_in1k"
DEEP = ["--ndim=3", "--inflate=repeat", "--in-channels=16", "--stem=tile", "--norm=instance"]


@pytest.fixture(autouse=True)
def _short(request):
    """B0 has half of its blocks, but where its published numbers are counted."""
    whole = request.function is test_by_hand_from_a_file
    with contextlib.nullcontext() if whole else short.cut():
        yield


def test_by_hand_from_a_file(port, tmp_path, checkpoint, capsys):
    out = tmp_path / "new" / "folder"
    assert port([NAME, f"--checkpoint={checkpoint}", *DEEP, f"--out={out}", "--license=mit"]) == 0
    (path,) = out.iterdir()
    assert path.name == f"{NAME}-3d-repeat-16ch-tile-instance.safetensors"
    weights = load_weights(path)
    assert weights.arrays["params/encoder/conv_stem/kernel"].shape == (3, 3, 3, 16, 32)
    record = dict(weights.metadata)
    assert (
        len(record.pop("sha256")) == 64 and record.pop("date") and len(record.pop("unused")) == 152
    )
    assert record.pop("versions").keys() == {
        "crossdim_jax",
        "jax",
        "flax",
        "numpy",
        "torch",
        "timm",
    }
    assert record == {
        "source": "file",
        "id": NAME,
        "url": None,
        "file": "model.safetensors",
        "licence": "mit",
        "architecture": "efficientnet_b0",
        "padding": "same",
        "eps": 1e-3,
        "ndim": 3,
        "inflate": "repeat",
        "inflate_at": [],
        "depth_kernels": None,
        "depth_taps": [3, 3, 3, 5, 3, 5, 5, 3],
        "factorised": False,
        "in_channels": 16,
        "stem": "tile",
        "norm": "instance",
        "statistics": "dropped",
        "seed": 0,
        "tensors": 208,
        "values": 4_289_180,  # the paper's 3D B0 with 16 input channels
        "fresh": [],
    }
    told = capsys.readouterr().out
    facts = ("4,289,180 parameters", "208 used of 360", "running statistics 96", "17 by repeat")
    for fact in (*facts, "classification head 7", "by stage 3,3,3,5,3,5,5,3", str(path)):
        assert fact in told
    assert told.rstrip().splitlines()[-1].startswith("next     python launch.py")


def test_a_random_file_says_so_in_name_and_record(port, tmp_path):
    assert port([NAME, "--random", f"--out={tmp_path}"]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == "tf_efficientnet_b0.random-2d-3ch-tile-batch.safetensors"
    assert load_weights(path).metadata["source"] == "random"


def test_by_config_the_network_loads_it(port, config, checkpoint, tmp_path, capsys):
    assert port([f"--config={config}", f"--checkpoint={checkpoint}"]) == 0
    assert f"--config={config}" in capsys.readouterr().out
    weights = load_weights(tmp_path / "ported.safetensors")
    model = models.build("dxnet", ops="lax")
    image = jax.ShapeDtypeStruct((1, 32, 32, 32, 4), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    needs = requirements(model, variables)
    claims = {"source": NAME, "inflate": "repeat", "stem": "tile"}
    check_fit(weights.metadata, needs | claims)
    with pytest.raises(WeightsError, match="inflate: found 'repeat', expected 'mean'"):
        check_fit(weights.metadata, needs | claims | {"inflate": "mean"})
    _, report = merge(variables, weights)
    assert set(report.filled) == set(weights.arrays) and not report.fresh and not report.unused


def test_by_config_with_argument_and_override(port, config, checkpoint, tmp_path, capsys):
    command = [f"--config={config}:center", "--config.model.norm=batch"]
    out = tmp_path / "other.safetensors"
    assert port([*command, f"--checkpoint={checkpoint}", f"--out={out}"]) == 0
    record = load_weights(out).metadata
    assert record["inflate"] == "center" and record["norm"] == "batch"
    following = capsys.readouterr().out.rstrip().splitlines()[-1]  # loads just this file
    for flag in (*command, f"--config.weights.file={out}"):
        assert f" {flag} " in following


def test_a_mismatch_the_config_accepts_is_ported(port, config, checkpoint, tmp_path):
    text = config.read_text()
    text = text.replace('"ignore": ()', '"ignore": ("padding", "eps")')
    config.write_text(text.replace('"same"', '"symmetric"').replace("1e-3", "1e-5"))
    assert port([f"--config={config}", f"--checkpoint={checkpoint}"]) == 0
    record = load_weights(tmp_path / "ported.safetensors").metadata
    assert record["padding"] == "same"  # the weights' own: the config does not rewrite history


def test_the_next_command_can_be_pasted(port, config, checkpoint, tmp_path, capsys):
    """A shell reads back every override, and the config that it names loads this very file."""
    text = config.read_text().replace('"data": {', '"data": {"root": "", ')
    config.write_text(text.replace("/ported.safetensors", "/a folder"))
    overrides = ["--config.model.norm=group"]
    overrides += ["--config.weights.skip=('encoder/bn1/.*', 'encoder/conv_stem/kernel')"]
    command = [f"--config={config}", f"--checkpoint={checkpoint}"]
    assert port([*command, *overrides]) == 0
    python, launch, given, *flags, workdir = shlex.split(
        capsys.readouterr().out.rstrip().splitlines()[-1].removeprefix("next")
    )
    assert (python, launch, given) == ("python", "launch.py", f"--config={config}")
    assert workdir == "--workdir=runs/NAME"
    (written,) = (tmp_path / "a folder").iterdir()
    assert flags == [
        *overrides,
        f"--config.weights.file={written}",  # the config names only the folder
        "--config.data.root=/path/to/cases",
    ]
    assert config_lib.read(str(config), flags).weights.file == str(written)

    elsewhere = [*overrides, "--config.data.root=/data", f"--config.weights.file={tmp_path}/b"]
    assert port([*command, *elsewhere]) == 0
    assert "/path/to/cases" not in capsys.readouterr().out  # the config knows


def test_the_next_command_by_hand_says_what_the_file_holds(port, tmp_path, checkpoint, capsys):
    out = tmp_path / "x.safetensors"
    assert port([NAME, f"--checkpoint={checkpoint}", *DEEP, f"--out={out}"]) == 0
    following = capsys.readouterr().out.rstrip().splitlines()[-1]
    for flag in (f"file={out}", f"source={NAME}", "inflate=repeat", "stem=tile"):
        assert f" --config.weights.{flag} " in following
    assert " --config.data.root=/path/to/cases " in following
    assert "--config.model." not in following.replace("--config.model.norm=", "")


def test_the_next_command_by_hand_names_another_network(tmp_path):
    recipe = Recipe(3, 16, "instance", "repeat", "tile")
    todo = plan.by_hand("efficientnet_b4", recipe, str(tmp_path))
    found = {"architecture": "efficientnet_b4", "padding": "symmetric", "eps": 1e-5}
    following = making.next_command(todo, found)
    for flag in ("encoder=efficientnet_b4", "padding=symmetric", "encoder_eps=1e-05"):
        assert f" --config.model.{flag} " in following


def test_the_experiment_that_comes_with_the_project(port, checkpoint, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))  # its config imports its neighbours
    config = str(ROOT / "configs" / "brats_dxnet.py")
    out = tmp_path / "w.safetensors"
    assert port([f"--config={config}", f"--checkpoint={checkpoint}", f"--out={out}"]) == 0
    record = load_weights(out).metadata
    found = {
        key: record[key] for key in ("id", "ndim", "in_channels", "inflate", "norm", "padding")
    }
    assert found == {
        "id": NAME,
        "ndim": 3,
        "in_channels": 16,
        "inflate": "repeat",
        "norm": "instance",
        "padding": "same",
    }


def test_every_option_reaches_the_file_and_its_record(port, tmp_path, checkpoint, capsys):
    """The file is named after them, and the command that trains with it says them too."""
    options = ["--ndim=3", "--inflate=gaussian", "--inflate-at=blocks_[56]_.*=center"]
    options += ["--inflate-at=conv_stem/kernel=mean", "--depth-kernels=1,3,3,3,3,3,3,2"]
    options += ["--factorised", "--norm=frozen", "--in-channels=4", "--stem=gray"]
    command = [NAME, f"--checkpoint={checkpoint}", *options, f"--out={tmp_path / 'out'}"]
    assert port(command) == 0
    told = capsys.readouterr().out
    (path,) = (tmp_path / "out").iterdir()
    digits = re.search("-mixed([0-9a-f]{6})-", path.name)[1]
    assert path.name == (
        f"{NAME}-3d-gaussian-mixed{digits}-d1.3.3.3.3.3.3.2-factorised-4ch-gray-frozen.safetensors"
    )
    record = load_weights(path).metadata
    assert record["inflate_at"] == ["blocks_[56]_.*=center", "conv_stem/kernel=mean"]
    assert record["depth_kernels"] == record["depth_taps"] == [1, 3, 3, 3, 3, 3, 3, 2]
    assert record["factorised"] is True and record["statistics"] == "carried"
    assert "6 by gaussian, 2 by center, 1 by mean" in told and "carried over from 2D" in told
    following = shlex.split(told.rstrip().splitlines()[-1].removeprefix("next"))
    for flag in (
        "--config.weights.inflate_at=('blocks_[56]_.*=center', 'conv_stem/kernel=mean')",
        "--config.model.depth_kernels=(1, 3, 3, 3, 3, 3, 3, 2)",
        "--config.model.factorised=True",
    ):
        assert flag in following


def test_the_configs_depth_options_make_the_file_its_network_loads(
    port, checkpoint, tmp_path, capsys
):
    """Port for the project's own config, with everything changed, then load as training does."""
    config = str(ROOT / "configs" / "brats_dxnet.py")
    changes = {
        "model.depth_kernels": "(1, 3, 3, 3, 3, 3, 3, 1)",
        "model.factorised": "True",
        "model.norm": "frozen",
        "weights.inflate": "repeat",
        "weights.inflate_at": "('blocks_0_.*=center',)",
        "weights.reestimate": "4",
        "weights.file": f"{tmp_path}/w.safetensors",
    }
    flags = [f"--config.{field}={value}" for field, value in changes.items()]
    assert port([f"--config={config}", f"--checkpoint={checkpoint}", *flags]) == 0
    loaded = config_lib.read(config, flags)
    weights = initial_state.load_weights(experiment.build(loaded, tmp_path))
    assert weights.metadata["statistics"] == "stale" and weights.metadata["factorised"]
    assert weights.metadata["depth_taps"] == [1, 3, 3, 3, 3, 3, 3, 1]
    for change, match in [
        ("weights.reestimate=0", "stale the 2D network's running BatchNorm"),
        ("model.factorised=False", "factorised: found True, expected False"),
        ("model.depth_kernels=3", r"depth_taps: found \[1, 3, .*expected \[3, 3, "),
        ("weights.inflate_at=()", "inflate_at: found .*blocks_0_.*expected \\(\\)"),
    ]:
        field = change.partition("=")[0]  # said once: flags for tuples add up
        others = [flag for flag in flags if not flag.startswith(f"--config.{field}=")]
        other = config_lib.read(config, [*others, f"--config.{change}"])
        with pytest.raises(WeightsError, match=match):
            initial_state.load_weights(experiment.build(other, tmp_path))


def test_a_file_is_certified_unless_told_otherwise(port, tmp_path, checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr(
        certificate, "certify", lambda path, *, source: asked.append((path, source))
    )
    command = [NAME, f"--checkpoint={checkpoint}"]
    assert port([*command, f"--out={tmp_path}/a.safetensors"]) == 0
    assert asked == []
    assert main([*command, f"--out={tmp_path}/b.safetensors"]) == 0
    ((path, source),) = asked
    assert path == tmp_path / "b.safetensors" and path.exists() and source.name.timm == NAME
