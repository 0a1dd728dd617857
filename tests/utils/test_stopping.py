"""Signals heard by one process and obeyed by all."""

import signal
import subprocess
import sys

import pytest
from torch.distributed import HashStore

from rtdmd_lightning.utils.stopping import StopSignals

PROGRAM = """
import os, signal, sys, time
from rtdmd_lightning.utils.stopping import StopSignals
StopSignals(grace={grace}).listen()
for _ in range({times}):
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.5)
time.sleep(300)
"""


def heard(store, *signals):
    process = StopSignals((signal.SIGUSR1,), store)
    process._heard.update(signals)
    return process


def test_several_processes_obey_after_the_same_step():
    """The one that did not hear it may have begun the next step when the other announces it."""
    store = HashStore()
    one, other = heard(store, signal.SIGTERM), heard(store)
    assert other.due(3) == [] and one.due(3) == []
    assert other.due(4) == [signal.SIGTERM] and one.due(4) == [signal.SIGTERM]


def test_what_two_processes_hear_in_different_steps_is_obeyed_once():
    store = HashStore()
    one, other = heard(store, signal.SIGUSR1), heard(store)
    assert one.due(3) == []
    other._heard.add(signal.SIGUSR1)
    assert other.due(4) == [signal.SIGUSR1] and one.due(4) == [signal.SIGUSR1]
    assert other.due(5) == [] and one.due(5) == []


def test_one_process_obeys_at_once():
    process = heard(None, signal.SIGINT)
    assert process.due(3) == [signal.SIGINT] and process.due(4) == []


def test_what_was_done_at_a_signal_before_is_done_again_after_the_run():
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(one) for one in signals]
    process = StopSignals((signal.SIGUSR1,))
    process.listen()
    assert all(signal.getsignal(one) is not handler for one, handler in zip(signals, before, strict=True))
    process.close()
    assert [signal.getsignal(one) for one in signals] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "times", "grace", "status"), [("SIGTERM", 1, 0.1, 143), ("SIGINT", 2, 1000, 130)])
def test_an_update_that_does_not_end_is_abandoned_and_a_second_interrupt_is_obeyed_at_once(name, times, grace, status):
    program = PROGRAM.format(name=name, times=times, grace=grace)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == status
    assert name in ended.stderr
