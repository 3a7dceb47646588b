"""Memory that compiling has freed does not stay with the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crossdim_jax.runtime import memory

PROGRAM = """
import sys
from crossdim_jax.runtime import memory
import jax, jax.numpy as jnp
memory.LEAST_S = 0.0
if sys.argv[1] == "given back":
    memory.give_back_after_compiling()

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

# Many loops, each of them another program to the compiler.
arrays = [jnp.zeros(n) for n in range(100, 160)]
before = resident()
jax.jit(lambda xs: [2 * x + 1 for x in xs]).lower(arrays).compile()
print(resident() - before)
"""


def kept_kb(how):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        cwd=Path(__file__).parents[2],
        env=environment | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout)


@pytest.mark.skipif(memory.TRIM is None, reason="glibc's malloc only")
def test_what_compiling_has_freed_is_given_back():
    assert kept_kb("given back") < 0.8 * kept_kb("kept")
