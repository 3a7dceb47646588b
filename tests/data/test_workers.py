import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from crossdim_jax.data import cache, workers
from crossdim_jax.errors import DataError, ManyErrors

ROOT = Path(__file__).resolve().parents[2]


def test_processes_make_the_cache_that_threads_make(challenge, phantom_folder, cached, tmp_path):
    files = challenge.cases(phantom_folder, labelled=True)
    made = cache.build(challenge, files, tmp_path, progress=False, num_processes=2)
    assert [case.id for case in made] == [case.id for case in cached]
    for one, other in zip(made, cached, strict=True):
        for name in ("image", "label", "foreground"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_processes_name_a_faulty_case_and_leave_the_good_ones_alone(
    challenge, own_phantoms, tmp_path
):
    files = challenge.cases(own_phantoms, labelled=True)
    cases = tmp_path / "cache"
    made = cache.build(challenge, files, cases, progress=False, num_processes=2)
    for case in made[:2]:
        (case.folder / "meta.json").unlink()
    before = [case.folder.stat().st_ctime_ns for case in made]
    broken = files[1].images[0]
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ManyErrors, match=f"1 of 4 .*\n.*{files[1].id}: .*{broken}"):
        cache.build(challenge, files, cases, progress=False, num_processes=2)
    after = [case.folder.stat().st_ctime_ns for case in made]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True, True]


def test_each_process_of_a_run_prepares_its_share_first(challenge, phantom_folder, tmp_path):
    files = challenge.cases(phantom_folder, labelled=True)
    seen = []

    def others_come():
        seen.extend(sorted(p.name.split("-")[0] for p in tmp_path.iterdir() if p.is_dir()))

    every = cache.build(challenge, files, tmp_path, progress=False, share=(1, 2), wait=others_come)
    assert seen == sorted(case.id for case in files[1::2])
    assert [case.id for case in every] == [case.id for case in files]  # the others never came


def test_processes_are_light_and_not_this_one():
    question = "('jax' in __import__('sys').modules, __import__('os').getpid())"
    work = [functools.partial(eval, question) for _ in range(3)]
    answers = dict(workers.run(work, processes=2))
    assert sorted(answers) == [0, 1, 2]
    assert not any(heavy for heavy, _ in answers.values())
    assert os.getpid() not in {pid for _, pid in answers.values()}


def test_a_process_that_is_killed_is_explained():
    work = [functools.partial(os.kill, 0, 0), functools.partial(os._exit, 9)]
    with pytest.raises(DataError, match="memory ran out.*num_processes"):
        list(workers.run(work, processes=1))


def warn():
    name = os.fsdecode(b"M\xfcller\x1b[2J")
    logging.getLogger("a.library").warning("of %s", name)
    warnings.warn(f"in {name}", stacklevel=1)


def test_what_processes_say_of_files_gives_the_terminal_no_orders(capfd):
    list(workers.run([warn], processes=1))
    said = capfd.readouterr().err
    assert "\x1b" not in said
    assert "of M\\xfcller\\x1b[2J\n" in said and r"UserWarning: in M\xfcller\x1b[2J" in said


PARENT = """
import functools, sys
from crossdim_jax.data import workers
code = "import os, time; open(os.path.join({!r}, str(os.getpid())), 'w'); time.sleep(60)"
work = [functools.partial(exec, code.format(sys.argv[1]))] * 2
list(workers.run(work, processes=2))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_their_parent(tmp_path, how):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT)
    with parent:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        parent.send_signal(how)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    wait_until(lambda: not any(map(running, pids)))


GROUP = f"""
from crossdim_jax.runtime import stop
stop.install()
try:
    {PARENT.strip().replace(chr(10), chr(10) + "    ")}
finally:
    stop.hold()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_of_the_whole_group_says_one_line(tmp_path, how):
    """As Ctrl-C in a terminal, or a scheduler, sends it: to the processes too."""
    parent = subprocess.Popen(
        [sys.executable, "-c", GROUP, str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    os.killpg(parent.pid, how)
    _, err = parent.communicate(timeout=30)  # which all have closed
    assert err == f"{how.name}: stopped; nothing was to be saved\n"
    assert parent.returncode == 128 + how


def running(pid):
    with contextlib.suppress(OSError):
        return "zombie" not in Path(f"/proc/{pid}/status").read_text().split("\n")[2]
    return False


def wait_until(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
