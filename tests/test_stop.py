"""What a signal ends, and with which exit status. The loop's own part: test_loop.py."""

import contextlib
import os
import signal
import threading

import jax
import pytest

from crossdim_jax import stop


def test_sigterm_ends_what_can_be_made_again_with_a_status_to_requeue_on(capfd):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(stop.Interrupted) as caught, stop.repeatable("evaluating"):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("not reached")
    assert caught.value.code == 75
    assert capfd.readouterr().err == "SIGTERM: stopped evaluating; run the same command again\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_whose_exception_was_lost_ends_the_work_at_the_next_place():
    with pytest.raises(stop.Interrupted), stop.repeatable("evaluating") as between:
        between()
        with contextlib.suppress(stop.Interrupted):  # as Python does within a __del__
            os.kill(os.getpid(), signal.SIGTERM)
        between()
        pytest.fail("not reached")


def test_outside_the_main_thread_the_work_is_done_all_the_same():
    def work():
        with stop.repeatable("evaluating") as between, stop.StopSignal() as signals:
            between()
            done.append(signals.requested())

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [False]


@pytest.fixture
def many(monkeypatch):
    """Two processes, to both of which the runtime says at the fifth asking that they stop."""
    asked = []

    def reached(number):
        asked.append(number)
        return number == asked[0] + 4

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(stop.multihost_utils, "reached_preemption_sync_point", reached)
    return asked


def test_the_processes_ask_with_numbers_that_grow_by_one(many):
    """However long a step or a validation is, and whatever came before in this process."""
    with stop.StopSignal() as first:
        assert [first.requested() for _ in range(2)] == [False, False]
    with stop.StopSignal() as second:
        assert [second.requested() for _ in range(5)] == [False, False, True, True, True]
    assert [number - many[0] for number in many] == [0, 1, 2, 3, 4]


def test_all_processes_end_repeatable_work_at_the_same_place(many):
    places = 0
    with pytest.raises(stop.Interrupted), stop.repeatable("predicting") as between:
        for _ in range(9):
            between()
            places += 1
    assert places == 4
