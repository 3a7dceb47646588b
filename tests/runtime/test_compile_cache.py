"""Compiled programs are kept, and used again by the next process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from crossdim_jax.runtime import compile_cache
compile_cache.cache_compiled_programs()
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
print(sum(event.endswith("/cache_hits") for event in hits))
"""


def run(**environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env=kept | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Error reading" not in result.stderr
    folder, hits = result.stdout.split()
    return Path(folder), int(hits)


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_the_second_process_finds_what_the_first_compiled(variable, tmp_path):
    folder, hits = run(**{variable: str(tmp_path)})
    assert folder == tmp_path or folder.is_relative_to(tmp_path / "crossdim_jax")
    assert hits == 0 and any(folder.iterdir())
    again, hits = run(**{variable: str(tmp_path)})
    assert again == folder and hits > 0


def test_a_program_torn_by_a_kill_is_compiled_again_and_kept(tmp_path):
    folder, _ = run(JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    [*others, torn] = sorted(folder.glob("*-cache"), key=lambda path: path.stat().st_mtime)
    whole = torn.read_bytes()
    for left in (0, 1, 200):
        torn.write_bytes(whole[:left])
        assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path))[1] == len(others)
        assert len(torn.read_bytes()) > 200
    assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path))[1] == len(others) + 1
