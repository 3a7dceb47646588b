"""What a signal ends, when, and with which exit status. The loop's own part: test_loop.py."""

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from crossdim_jax.runtime import stop

ROOT = Path(__file__).resolve().parents[2]

# `deaf` is what a compiler is: minutes in C, without Python's lock, in which no handler runs.
PROGRAM = """
import hashlib, os, pathlib, sys, threading, time
from crossdim_jax.runtime import stop
from crossdim_jax.errors import DataError
stop.install()

def deaf():
    print("here", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)

def saving():
    print("saved", flush=True)
    return 7
"""


def start(program):
    """Runs PROGRAM and what follows it; returns the process once it has printed "here"."""
    return begin("-c", PROGRAM + program)


def begin(*arguments):
    """Runs Python; returns the process once it has printed "here"."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "here\n", process.communicate()[1]
    return process


def end(process):
    """`(status, what it printed, its errors)` of a process that ends much sooner than `deaf`."""
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "Traceback" not in err
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_program_deaf_in_c_is_left_at_once(number, status):
    name = signal.Signals(number).name
    for phase, expected, printed, says in (
        ("", status, "", "stopped; nothing was to be saved\n"),
        ("stop.enter(stop.repeatable('x'))", 75, "", "stopped x; run the same command again\n"),
        ("stop.enter(stop.Phase('saving', 75, saving))", 75, "saved\n", "saving\n"),
    ):
        process = start(f"{phase}\ndeaf()")
        process.send_signal(number)
        assert end(process) == (expected, printed, f"{name}: {says}")


@pytest.mark.parametrize("command", [["launch.py", "--workdir=none"], ["-m", "weight_port"]])
def test_the_commands_are_left_at_once(command, tmp_path):
    config = tmp_path / "deaf.py"
    config.write_text(PROGRAM.replace("stop.install()", "") + "\ndeaf()\n")
    process = begin(*command, f"--config={config}")
    process.send_signal(signal.SIGINT)
    assert end(process)[::2] == (130, "SIGINT: stopped; nothing was to be saved\n")


def test_a_signal_that_comes_where_an_exception_would_be_lost():
    program = """
class Lost:
    def __del__(self):
        print("here", flush=True)
        time.sleep(60)
Lost()
"""
    process = start(program)
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130


def test_a_library_that_takes_the_wake_up_for_itself():
    process = start("""
import signal
read, write = os.pipe()
os.set_blocking(write, False)
signal.set_wakeup_fd(write)
print("here", flush=True)
time.sleep(60)
""")
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130


def test_what_cannot_be_left_is_finished_first():
    process = start("""
stop.enter(stop.BUSY)
print("here", flush=True)
while stop._PROGRAM._signal is None:
    time.sleep(0.01)
print("step", flush=True)
stop.enter(stop.Phase("saving", 75, saving))
time.sleep(60)
""")
    process.send_signal(signal.SIGTERM)
    found = end(process)
    assert found == (75, "step\nsaved\n", "SIGTERM: finishing the step, then saving\n")


def test_how_it_ended_is_told_where_the_work_was_done_meanwhile():
    process = start("""
stop.enter(stop.BUSY)
print("here", flush=True)
while stop._PROGRAM._signal is None:
    time.sleep(0.01)
stop.enter(stop.repeatable("after it"))
time.sleep(60)
""")
    process.send_signal(signal.SIGTERM)
    last = "SIGTERM: stopped after it; run the same command again"
    assert end(process)[::2] == (75, f"SIGTERM: finishing the step, then saving\n{last}\n")


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    process = start("stop.enter(stop.BUSY)\ndeaf()")
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "SIGTERM: finishing the step, then saving\n"
    process.send_signal(signal.SIGTERM)  # a scheduler repeats itself, and means the same
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    status, _, err = end(process)
    assert status == 130 and "left at once" in err


def test_a_save_that_fails_is_told():
    process = start("""
def full():
    raise DataError("the disk is full")
stop.enter(stop.Phase("saving", 75, full))
deaf()
""")
    process.send_signal(signal.SIGTERM)
    assert end(process)[::2] == (1, "SIGTERM: saving\nerror: the disk is full\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_it_saves_though_nobody_reads_what_it_says(number, tmp_path):
    """As in `... 2>&1 | tee log`, where Ctrl-C ends tee as well; and names of any bytes."""
    for kind, expected in (("saving", 75), ("failing", 1), ("breaking", 1)):
        path = tmp_path / kind
        process = start(f"""
from crossdim_jax.training import progress
shown = progress.Progress(9)
def saving():
    shown.say("stopped and saved")
    shown.update(3, 1.0, {{"loss": 1.0}})
    pathlib.Path({str(path)!r}).touch()
    if {kind!r} != "saving":
        raise (DataError if {kind!r} == "failing" else KeyError)(chr(0xdcfc))
stop.enter(stop.Phase("saving", 75, saving))
deaf()
""")
        process.stderr.close()
        process.stdout.close()
        process.send_signal(number)
        try:
            assert process.wait(timeout=30) == expected and path.exists()
        finally:
            process.kill()


def test_an_error_lets_a_stop_save_before_all_is_closed(tmp_path):
    """As `loop.fit` does where a batch fails while the last step is saved."""
    process = start(f"""
began = threading.Event()
def saving():
    began.set()
    time.sleep(1)
    pathlib.Path({str(tmp_path / "saved")!r}).touch()
stop.enter(stop.Phase("saving", 75, saving))
print("here", flush=True)
began.wait(30)
try:
    raise DataError("a batch cannot be read")
except DataError:
    stop.enter(stop.FAILING)
    os._exit(1)
""")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 75 and (tmp_path / "saved").exists()


def test_a_program_at_its_end_can_still_be_left():
    process = start("""
stop.hold()
threading.Thread(target=deaf).start()  # which the end of a program waits for
sys.exit(3)
""")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143


def test_what_is_left_over_is_removed(tmp_path):
    path = tmp_path / "half written"
    path.touch()
    process = start(f"""
with stop.at_the_end(pathlib.Path({str(path)!r}).unlink):
    deaf()
""")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143 and not path.exists()


def test_a_program_that_fails_by_itself_keeps_its_own_end():
    """A stop does not turn an error that is just being told into "run again"."""
    process = start("""
stop.enter(stop.BUSY)
print("here", flush=True)
while stop._PROGRAM._signal is None:
    time.sleep(0.01)
stop.hold()
time.sleep(1)
os._exit(1)
""")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 1


def test_a_process_that_only_waits_for_others_at_its_end():
    """Where Python starts no thread any more."""
    process = start("""
import atexit
stop.enter(stop.repeatable("x"))
atexit.register(deaf)
""")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 75


def test_without_answers_the_next_phase_raises():
    program = stop.Program()
    program.enter(stop.BUSY)
    program.notice(signal.SIGTERM)
    with pytest.raises(stop.Interrupted) as caught:
        program.enter(stop.Phase("", 75, lambda: 3))
    assert (caught.value.code, caught.value.step) == (75, 3)
    program.enter(stop.START)  # it has been answered


class Shared:
    """Notes of several processes, here threads of this one."""

    def __init__(self, notes, index, count):
        self.notes, self.index, self.count = notes, index, count

    def put(self, name, text):
        self.notes[name] = text

    def all(self, folder):
        return {k: v for k, v in list(self.notes.items()) if k.startswith(f"{folder}/")}


@pytest.mark.parametrize("seed", range(12))
def test_several_processes_leave_in_the_same_phase(monkeypatch, seed):
    """Whoever gets the signal, and however far they are apart; a step is made by all or none."""
    monkeypatch.setattr(stop, "_mute", lambda: None)
    monkeypatch.setattr(stop, "_say", lambda text: None)
    chance, count, steps = random.Random(seed), 3, 6
    notes, saved, left, made = {}, {}, {}, [0] * count
    together = threading.Barrier(count)

    def process(index):
        program = stop.Program(leave=lambda status: left.__setitem__(index, status))
        program._answers = True
        threading.Thread(target=program._answer, daemon=True).start()
        program.share(Shared(notes, index, count))
        programs[index] = program
        pause = random.Random(seed * count + index)
        together.wait()

        def phases():
            for step in range(1, steps):
                time.sleep(pause.uniform(0, 0.02))
                if step > 1:
                    program.enter(stop.BUSY)
                together.wait()  # the collective: all make the step
                made[index] = step
                program.enter(stop.BUSY)
                time.sleep(pause.uniform(0, 0.01))
                program.enter(stop.Phase("", 75, lambda step=step: saved.setdefault(index, step)))
            program.enter(stop.repeatable("after"))

        phases()

    programs = [None] * count
    for index in range(count):
        threading.Thread(target=process, args=(index,), daemon=True).start()
    while None in programs:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.15))
    first = chance.randrange(count)
    programs[first].notice(signal.SIGTERM)
    for program in programs:  # as their listeners do, when they come to look
        time.sleep(chance.uniform(0, 0.03))
        program.notice(signal.SIGTERM, told=True)
    until = time.monotonic() + 60
    while len(left) < count:
        assert time.monotonic() < until, (notes, left, made)
        time.sleep(0.01)
    assert len(set(left.values())) == 1 and set(left.values()) <= {75, 143}
    assert len(set(saved.items())) == 0 or len(saved) == count and len(set(saved.values())) == 1
    if set(left.values()) == {75} and saved:
        assert set(made) == set(saved.values())
