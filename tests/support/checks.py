"""Checks for the conductor: one that works, and one for each way in which it can go wrong. Each runs in a process of its own."""

import os
import signal
import subprocess
import sys
import time

from rtdmd_lightning.benchmarking.checks import Check
from rtdmd_lightning.benchmarking.probe import Probe


def works(probe: Probe) -> None:
    print("to the log")
    probe.row("its number", 2.0, "s")
    probe.row("what the first found", probe.found.get(("first", "its number"), 0.0))


def raises(probe: Probe) -> None:
    probe.attempt("a part", lambda: 1 / 0)
    probe.row("the part after it", 1.0)
    raise ValueError("no more")


def dies(probe: Probe) -> None:
    probe.row("before", 1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(probe: Probe) -> None:
    """With a process of its own, which must not outlive it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    probe.row("child", float(child.pid))
    time.sleep(600)


def checks() -> list[Check]:
    return [
        Check("first", works, 60, 1),
        Check("raises", raises, 60, 1),
        Check("if it failed", works, 60, 1, if_failed="raises"),
        Check("if it had failed", works, 60, 1, if_failed="first"),
        Check("dies", dies, 60, 1),
        Check("hangs", hangs, 4, 1),
        Check("last", works, 60, 1, against="first"),
        Check("long", works, 9000, 9000),
    ]
