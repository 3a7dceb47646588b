"""What a signal ends, and with which exit status. The loop's own part: test_loop.py."""

import contextlib
import os
import signal
import threading

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
            done.append(signals.requested(1))

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [False]
