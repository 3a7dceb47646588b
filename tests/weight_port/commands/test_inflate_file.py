"""`inflate FILE`: a 2D weight file becomes the 3D file that porting gives, without torch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crossdim_jax.weights.file import load_weights, save_weights
from crossdim_jax.weights.recipe import Recipe
from tests.weight_port import tiny
from weight_port.__main__ import main
from weight_port.commands.making import record
from weight_port.convert import convert

ROOT = Path(__file__).resolve().parents[3]
NAME = "efficientnet_tiny"
FLAT = Recipe(ndim=2, in_channels=3, norm="batch", inflate=None, stem="tile")


@pytest.fixture(autouse=True)
def registered():
    with tiny.registered():
        yield


def write(path, **changes):
    origin, recipe = tiny.source(), Recipe(**{**vars(FLAT), **changes})
    converted = convert(origin, recipe)
    return save_weights(path, converted.arrays, record(origin, recipe, converted))


def inflate(*arguments):
    return main(["inflate", *map(str, arguments), "--no-certificate"])


def test_the_result_is_that_of_porting_to_3d(tmp_path, capsys):
    path = write(tmp_path / "flat.safetensors")
    flags = ["--inflate=sqrt", "--inflate-at=blocks_1_.*=acs", "--in-channels=5", "--stem=gray"]
    assert inflate(path, *flags, "--norm=frozen", f"--out={tmp_path / 'out'}") == 0
    (out,) = (tmp_path / "out").iterdir()
    assert out.name.startswith(f"{NAME}-3d-sqrt-mixed") and "5ch-gray-frozen" in out.name
    found = load_weights(out)
    recipe = Recipe(
        ndim=3,
        in_channels=5,
        norm="frozen",
        inflate="sqrt",
        stem="gray",
        inflate_at=("blocks_1_.*=acs",),
    )
    expected = convert(tiny.source(), recipe).arrays
    assert found.arrays.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found.arrays[key], array)
    assert found.metadata["id"] == NAME and found.metadata["sha256"] == "0" * 64
    assert found.metadata["by_way_of"]["file"] == "flat.safetensors"
    assert "consider reestimate" in capsys.readouterr().out  # statistics under sqrt and acs


def test_an_adapted_stem_is_kept_as_it_is(tmp_path):
    path = write(tmp_path / "flat.safetensors", in_channels=4, stem="gray")
    assert inflate(path, "--inflate=mean", f"--out={tmp_path}/deep.safetensors") == 0
    deep = load_weights(tmp_path / "deep.safetensors")
    assert deep.metadata["in_channels"] == 4 and deep.metadata["stem"] == "gray"
    stem = "params/encoder/conv_stem/kernel"
    flat = load_weights(path).arrays[stem]
    np.testing.assert_allclose(deep.arrays[stem].sum(0), flat, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("flag", ["--stem=tile", "--in-channels=3", "--in-channels=8"])
def test_an_adapted_stem_cannot_become_another(flag, tmp_path, capsys):
    path = write(tmp_path / "flat.safetensors", in_channels=4, stem="gray")
    assert inflate(path, flag, f"--out={tmp_path}/deep.safetensors") == 1
    assert "its stem has 4 input channels by 'gray', asked for" in capsys.readouterr().err
    assert not (tmp_path / "deep.safetensors").exists()


def test_an_adapted_stem_may_be_drawn_anew(tmp_path):
    path = write(tmp_path / "flat.safetensors", in_channels=4, stem="gray")
    out = tmp_path / "deep.safetensors"
    assert inflate(path, "--stem=reinit", "--in-channels=8", "--seed=3", f"--out={out}") == 0
    found = load_weights(out)
    assert found.arrays["params/encoder/conv_stem/kernel"].shape[-2] == 8
    assert found.metadata["fresh"] == ["params/encoder/conv_stem/kernel"]


def test_a_norm_without_statistics_stays_without(tmp_path, capsys):
    path = write(tmp_path / "flat.safetensors", norm="group")
    assert inflate(path, f"--out={tmp_path}/deep.safetensors") == 0
    assert load_weights(tmp_path / "deep.safetensors").metadata["norm"] == "group"
    assert inflate(path, "--norm=batch", "--inflate=mean", f"--out={tmp_path}/b.safetensors") == 1
    assert "missing in the source: batch_stats/encoder" in capsys.readouterr().err


def test_3d_files_and_configs_said_twice_are_refused(tmp_path, capsys):
    path = write(tmp_path / "deep.safetensors", ndim=3, inflate="mean")
    assert inflate(path) == 1
    assert "deep.safetensors: holds 3D weights" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        inflate(path, "--config=x.py", "--norm=batch")
    assert "--norm: the config says this" in capsys.readouterr().err


CONFIG = """
from ml_collections import ConfigDict


def get_config(arg=""):
    return ConfigDict({
        "data": {"patch": (64, 64, 64)},
        "model": {"name": "dxnet", "encoder": "efficientnet_tiny"},
        "weights": {
            "source": "efficientnet_tiny", "inflate": "gaussian", "stem": "tile", "file": "FILE",
            "skip": (), "ignore": (),
        },
    })
"""


@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
def test_for_a_config_it_makes_what_the_config_loads(tmp_path):
    path = write(tmp_path / "flat.safetensors")
    (tmp_path / "e.py").write_text(CONFIG.replace("FILE", f"{tmp_path}/deep.safetensors"))
    assert inflate(path, f"--config={tmp_path}/e.py", "--config.weights.inflate=mean") == 0
    found = load_weights(tmp_path / "deep.safetensors").metadata
    assert (found["inflate"], found["in_channels"], found["norm"]) == ("mean", 16, "instance")


def test_neither_torch_nor_timm_is_needed(tmp_path):
    """Nor for the export: both commands, with the modules out of reach."""
    program = f"""
import sys
sys.modules["torch"] = sys.modules["timm"] = None
from tests.weight_port import tiny
from weight_port.__main__ import main
with tiny.registered():
    folder = {str(tmp_path)!r}
    flags = ["--inflate=mean", "--no-certificate", f"--out={{folder}}/deep.safetensors"]
    sys.exit(main(["inflate", f"{{folder}}/flat.safetensors", *flags]))
"""
    write(tmp_path / "flat.safetensors")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "deep.safetensors").exists()
