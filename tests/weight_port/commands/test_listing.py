"""`list`: every network that can be ported, as a table and as JSON."""

import json

import pytest

from crossdim_jax.models import encoders
from weight_port.__main__ import main


def test_the_table_names_every_encoder_and_what_is_left_out(capsys):
    assert main(["list"]) == 0
    told = capsys.readouterr().out
    first, *lines = told.splitlines()
    assert first.split()[0] == "architecture" and max(map(len, told.splitlines())) <= 120
    assert [line.split()[0] for line in lines[: len(encoders.ENCODERS)]] == list(encoders.ENCODERS)
    assert "efficientnet_b0  " in told and "3,595,388" in told
    assert "Left out: gc_efficientnetv2_rw_t: its gates" in told


def test_words_choose(capsys):
    assert main(["list", "v2", "_s"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["efficientnetv2_s", "efficientnetv2_rw_s"]
    assert "2 architectures, 3 names" in lines[4]
    assert main(["list", "vgg1", "_bn"]) == 0
    told = capsys.readouterr().out
    assert "4 architectures" in told and "  /1 64 128 256 512 512 512  " in told
    assert told.count("vgg: symmetric") == 1 and "Left out" not in told
    assert main(["list", "alexnet"]) == 1
    assert "No network is called 'alexnet'" in capsys.readouterr().err


def test_json_is_the_same_for_programs(capsys):
    """With timm at hand, also its pre-trained weights and their licences; nothing is fetched."""
    pytest.importorskip("timm")
    assert main(["list", "efficientnet_b0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = [r for r in found["supported"] if r["architecture"] == "efficientnet_b0"]
    assert row["models"] == ["tf_efficientnet_b0", "efficientnet_b0"]
    assert row["paddings"] == {"tf_efficientnet_b0": "same", "efficientnet_b0": "symmetric"}
    assert (row["parameters"], row["resolution"]) == (3_595_388, 224)
    assert row["licences"]["tf_efficientnet_b0.ns_jft_in1k"] == "apache-2.0"
    assert "gc_efficientnetv2_rw_t" in found["left_out"]


def test_tags_show_weights_and_licences(capsys):
    pytest.importorskip("timm")
    assert main(["list", "--tags", "efficientnet_b0_gn"]) == 0
    assert "no pre-trained weights in timm" in capsys.readouterr().out
    assert main(["list", "--tags", "tf_efficientnet_b0"]) == 0
    assert "    tf_efficientnet_b0.ns_jft_in1k  (apache-2.0)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["port", "list", "inflate", "export", "reestimate", "verify", "inspect", None]
)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*([command] if command else []), "--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: python -m weight_port{f' {command}' if command else ''} [-h]")
    assert ("  reestimate  measures" in told) == (command is None)
