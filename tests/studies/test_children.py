"""What a command has started ends with it."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from rtdmd_lightning.studies.children import Children
from tests.support.tiny import REPOSITORY

SLEEP = [sys.executable, "-c", "import time; print('ready ', end='', flush=True); time.sleep(300)"]
COMMAND = f"""
from concurrent.futures import ThreadPoolExecutor
from rtdmd_lightning.studies.children import Children
with Children() as children, ThreadPoolExecutor(2) as pool:
    begun = [pool.submit(children.run, {SLEEP!r}) for _ in range(2)]
print([one.result() for one in begun])
"""


def test_a_finished_childs_status_comes_back_and_the_handler_too():
    before = signal.getsignal(signal.SIGTERM)
    with Children() as children:
        assert children.run([sys.executable, "-c", "raise SystemExit(7)"]) == 7
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_sigterm_to_the_command_alone_ends_its_children_too():
    """They hold the pipe open until they have ended."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, text=True, env=environment)
    assert command.stdout.read(12).split() == ["ready", "ready"]
    command.terminate()
    said, _ = command.communicate(timeout=120)
    assert command.returncode == 128 + signal.SIGTERM and said == ""


def test_one_that_is_started_after_the_signal_ends_too():
    statuses = []
    with pytest.raises(SystemExit) as exit_, Children() as children:
        os.kill(os.getpid(), signal.SIGTERM)
        thread = threading.Thread(target=lambda: statuses.append(children.run(SLEEP)))
        thread.start()
        thread.join(timeout=120)
    assert exit_.value.code == 143 and statuses == [-signal.SIGTERM]
