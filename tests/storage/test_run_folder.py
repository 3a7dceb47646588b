import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.storage import run_folder
from crossdim_jax.text import without_paths

CONFIG = {
    "optim": {"lr": 1e-3, "betas": (0.95, 0.99)},
    "log_every_steps": 10,
    "data": {"patch": "a"},
}


def trained(folder):
    """A run folder with a checkpoint in it: from then on its config counts."""
    run_folder.claim(folder, CONFIG)
    (folder / "checkpoints" / "4").mkdir(parents=True)


def test_the_same_config_may_come_again(tmp_path):
    for _ in range(2):
        path = run_folder.claim(tmp_path / "run", CONFIG)
    assert json.loads(path.read_text())["optim"] == {"lr": 1e-3, "betas": [0.95, 0.99]}
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]


def test_another_config_is_refused_with_every_difference(tmp_path):
    trained(tmp_path)
    other = {"optim": {"lr": 3e-3, "betas": (0.95, 0.99)}, "log_every_steps": 10, "seed": 1}
    with pytest.raises(ConfigError) as caught:
        run_folder.claim(tmp_path, other)
    text = str(caught.value)
    for line in (
        "optim.lr: 0.001 -> 0.003",
        "data.patch: 'a' -> '(absent)'",
        "seed: '(absent)' -> 1",
    ):
        assert line in text
    assert "betas" not in text and str(tmp_path) in text
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 1e-3


def test_harmless_fields_may_change_and_are_recorded(tmp_path):
    trained(tmp_path)
    changed = CONFIG | {"log_every_steps": 5, "inference": {"overlap": 0.5}}
    changed["train"] = {"skip_nonfinite": 3}
    run_folder.claim(tmp_path, changed)
    assert json.loads((tmp_path / "config.json").read_text())["log_every_steps"] == 5
    with pytest.raises(ConfigError, match="log_every_steps: 5 -> 7"):
        run_folder.claim(tmp_path, changed | {"log_every_steps": 7}, harmless=())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/run: the run folder cannot be written"):
        run_folder.claim(tmp_path / "file" / "run", CONFIG)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"null", b"\xff\xfe", b'{"a": 1, "a": 2}'])
def test_a_damaged_config_is_named_and_left_as_it_is(tmp_path, content):
    trained(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    for check in (run_folder.claim, run_folder.require_same_network):
        with pytest.raises(DataError, match="config.json: .*; put it back or start in a new"):
            check(tmp_path, CONFIG)
    assert (tmp_path / "config.json").read_bytes() == content


def test_what_is_no_file_is_no_config(tmp_path):
    trained(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(DataError, match="config.json: is a folder"):
        run_folder.claim(tmp_path, CONFIG)
    (tmp_path / "config.json").rmdir()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(DataError, match="config.json: is a named pipe"):
        run_folder.claim(tmp_path, CONFIG)


def test_a_config_that_is_gone_is_that_of_the_checkpoints_or_an_error(tmp_path, caplog):
    trained(tmp_path)
    config = CONFIG | {"data": {"patch": "a", "root": "/home/eve/data"}, "model": {"name": "x"}}
    config["weights"] = {"skip": [".*/conv_stem/kernel"]}
    (tmp_path / "config.json").unlink()
    for check in (run_folder.claim, run_folder.require_same_network):
        with pytest.raises(DataError, match="config.json: there is no such file, and .* put it b"):
            check(tmp_path, config)
    (tmp_path / "checkpoints" / "4" / "meta").mkdir()
    meta = tmp_path / "checkpoints" / "4" / "meta" / "metadata"
    meta.write_text(json.dumps({"step": 4, "config": without_paths(config)}))
    other = config | {"optim": {"lr": 5, "betas": (0.95, 0.99)}}
    with pytest.raises(ConfigError, match="optim.lr: 0.001 -> 5"):
        run_folder.claim(tmp_path, other)
    with pytest.raises(ConfigError, match="weights.skip"):
        run_folder.claim(tmp_path, config | {"weights": {"skip": [".*/other/kernel"]}})
    with pytest.raises(ConfigError, match="model.name: 'x' -> 'y'"):
        run_folder.require_same_network(tmp_path, config | {"model": {"name": "y"}})
    run_folder.require_same_network(tmp_path, config)
    path = run_folder.claim(tmp_path, config, write=False)
    assert not path.exists()
    run_folder.claim(tmp_path, config)
    assert run_folder.read_config(tmp_path)["data"]["root"] == "/home/eve/data"
    assert "config.json: was not there; it is written anew" in caplog.text


def test_other_processes_only_check(tmp_path):
    run_folder.claim(tmp_path, CONFIG, write=False)
    assert not (tmp_path / "config.json").exists()


def test_a_checkpoint_that_was_never_finished_is_none(tmp_path):
    """A run killed while it wrote its first one starts again, with its ported weights."""
    (tmp_path / "checkpoints" / "best").mkdir(parents=True)
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
    assert not run_folder.has_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "4").mkdir()
    assert run_folder.has_checkpoint(tmp_path)


def test_a_field_that_a_later_version_added_may_have_its_default_and_no_other_value(tmp_path):
    trained(tmp_path)
    defaults = CONFIG | {"optim": CONFIG["optim"] | {"decay": 0.0}, "log_every_steps": 3}
    now = CONFIG | {"optim": CONFIG["optim"] | {"decay": 0.0}}
    run_folder.claim(tmp_path, now, defaults=defaults, write=False)
    with pytest.raises(ConfigError, match=r"optim.decay: '\(absent\)' -> 0.1"):
        changed = CONFIG | {"optim": CONFIG["optim"] | {"decay": 0.1}}
        run_folder.claim(tmp_path, changed, defaults=defaults)
    with pytest.raises(ConfigError, match="log_every_steps: 10 -> 3"):  # recorded: it counts
        run_folder.claim(tmp_path, now | {"log_every_steps": 3}, defaults=defaults, harmless=())
    run_folder.claim(tmp_path, now, defaults=defaults)  # from now on it is recorded
    with pytest.raises(ConfigError, match=r"optim.decay: 0.0 -> '\(absent\)'"):
        run_folder.claim(tmp_path, CONFIG, defaults=defaults)


HOLDER = """
import sys
from crossdim_jax.storage import run_folder
from crossdim_jax.runtime import stop
stop.install()
with run_folder.only_process(sys.argv[1], "training"):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder):
    """A process that holds a run folder until it is ended."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_run_folder_is_held_by_one_process_until_that_is_gone_even_killed(tmp_path):
    with hold(tmp_path / "run") as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            DataError, match=f"another process is training.*process {holder.pid} on"
        ):
            with run_folder.only_process(tmp_path / "run", "training"):
                pass
        with run_folder.only_process(tmp_path / "run", "evaluating"):
            pass
        holder.kill()
        holder.wait()
        for _ in range(2):
            with run_folder.only_process(tmp_path / "run", "training"):
                pass


def test_a_lock_names_its_host_only_while_it_is_held(tmp_path):
    with run_folder.only_process(tmp_path, "training"):
        assert socket.gethostname() in (tmp_path / ".training.lock").read_text()
    assert (tmp_path / ".training.lock").read_bytes() == b""
    with hold(tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        assert f"process {holder.pid} on" in (tmp_path / ".training.lock").read_text()
        holder.terminate()
        assert holder.wait() == 143
    assert (tmp_path / ".training.lock").read_bytes() == b""


@pytest.mark.parametrize(
    "content", [b"[]", b"{", b'{"peak_memory_mb": "much"}', b'{"devices": null}', b"\xff"]
)
def test_damaged_costs_are_named(tmp_path, content):
    assert run_folder.read_cost(tmp_path) == {}
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match="run.json: "):
        run_folder.read_cost(tmp_path)


def test_an_empty_section_of_a_config_is_a_value():
    """A section that lost its last field differs from one that never was, and from a filled one."""
    found = run_folder.differences
    assert found({"a": {}}, {"a": {}}) == {} == found({}, {})
    assert found({"a": {}}, {}) == {"a": ({}, run_folder.MISSING)}
    assert found({"a": {"b": {}}}, {"a": {"b": {"c": 1}}}) == {
        "a.b": ({}, run_folder.MISSING),
        "a.b.c": (run_folder.MISSING, 1),
    }
