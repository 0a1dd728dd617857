"""Runs checks one after the other, each in a process of its own, and hands on what they find.

A server imports the slow libraries once and is forked for every check (`multiprocessing`'s forkserver), so that a check begins in
a moment. Nothing before the fork may touch the device: a forked process could not use it. Where a library does so while it is
imported, every check imports anew.
"""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from rtdmd_lightning.benchmarking.checks import Check
from rtdmd_lightning.benchmarking.probe import Probe
from rtdmd_lightning.benchmarking.report import Report, Row

DONE, SPOILT = "done", "spoilt"
CHILD_MARGIN = 2.0
"""Seconds that a check knows nothing of, so that it ends by itself before it is ended."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a library that asks whether there is a GPU must not spoil the fork
}


class Running(NamedTuple):
    """A check that has begun: its process, where its rows come from, and when it is ended."""

    process: BaseProcess
    reader: Connection
    until: float


@dataclass
class Conductor:
    """Plays checks until the time is up.

    Args:
        report: where rows go.
        device: what is measured.
        small: see `Probe`.
        seconds: for all checks together.
    """

    report: Report
    device: torch.device
    small: bool
    seconds: float

    def __post_init__(self) -> None:
        self.method: Literal["forkserver", "spawn"] = "forkserver"
        self.until = time.monotonic() + self.seconds

    def play(self, checks: Sequence[Check]) -> None:
        """One after the other, alone on the machine."""
        os.environ.update(ENVIRONMENT)
        for check in checks:
            left = self.until - time.monotonic()
            if check.if_failed is not None and not self.report.failed(check.if_failed):
                continue
            if left < check.least:
                self.report.add(Row(check.name, "not begun", f"{left:.0f} s left", note=f"it wants {check.least:.0f}"))
                continue
            self.perform(check)
            self.compare(check)

    def begin(self, check: Check) -> Running:
        seconds = min(check.seconds, self.until - time.monotonic())
        processes = multiprocessing.get_context(self.method)
        processes.set_forkserver_preload([Check.__module__])
        reader, writer = processes.Pipe(duplex=False)
        found = {(row.check, row.what): row.value for row in self.report.rows if not isinstance(row.value, str)}
        given = (check, self.device, self.small, self.report.output, seconds - CHILD_MARGIN, found, writer)
        process = processes.Process(target=carry_out, args=given)  # type: ignore[attr-defined] # every context has it
        process.start()
        writer.close()
        return Running(process, reader, time.monotonic() + seconds)

    def perform(self, check: Check) -> None:
        """Begin the check, pass its rows on, end it. Its process leads a group of its own, which is ended with it."""
        running = self.begin(check)
        try:
            ended = self.listen(running)
            if ended is None:
                self.report.add(Row(check.name, "ENDED", "its time was up", good=False, note="it was not done"))
            elif ended not in (DONE, SPOILT):
                running.process.join(5)
                code = f"exit code {running.process.exitcode}"
                self.report.add(Row(check.name, "CRASHED", code, good=False, note="see the log"))
        finally:
            end(running.process)
        if ended == SPOILT:
            self.method = "spawn"
            self.report.add(
                Row(check.name, "a forked process cannot use the device", "", note="each check imports anew")
            )
            self.perform(check)

    def listen(self, running: Running) -> str | None:
        """Pass rows on until the check says that it is done; "" where its process died, None where its time is up."""
        while running.reader.poll(max(0.0, running.until - time.monotonic())):
            try:
                message = running.reader.recv()
            except EOFError:
                return ""
            if not isinstance(message, Row):
                return message
            self.report.add(message)
        return None

    def compare(self, check: Check) -> None:
        """Its seconds and those of the check that it is held against."""
        if check.against is None:
            return
        for row in [row for row in self.report.rows if row.check == check.name and row.unit == "s"]:
            before = self.report.number(check.against, row.what)
            if before is not None and not isinstance(row.value, str) and row.what not in ("built", "first step"):
                self.report.add(Row(check.name, f"{row.what}: times as fast", before / row.value, "x"))


def carry_out(
    check: Check,
    device: torch.device,
    small: bool,
    output: Path,
    seconds: float,
    found: dict[tuple[str, str], float],
    connection: Connection,
) -> None:
    """One check, in its own process. All that it prints goes to the log."""
    os.setsid()
    os.environ.update(check.environment)
    with log(output.with_suffix(".log"), check.name):
        warnings.simplefilter("ignore")
        if check.on_device and not usable(device):
            return connection.send(SPOILT)
        probe = Probe(check.name, device, small, output, seconds, connection.send, found)
        try:
            begin(check, probe)
        except Exception as error:
            probe.error(check.name, error)
        connection.send(DONE)
    return None


def usable(device: torch.device) -> bool:
    """False in a process that was forked from one that has used the device."""
    try:
        torch.empty(0, device=device)
    except RuntimeError as error:
        if "fork" not in str(error):
            raise
        return False
    return True


def begin(check: Check, probe: Probe) -> None:
    """Unless the device is too small for it."""
    memory = probe.memory_gib()
    if memory is not None and memory < check.gib and not probe.small:
        return probe.row("not begun", f"{memory:.0f} GiB", note=f"it wants {check.gib:.0f}")
    return check.function(probe)


@contextmanager
def log(file: Path, title: str) -> Iterator[None]:
    with file.open("a") as stream:
        print(f"\n===== {title}", file=stream, flush=True)
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        yield
        sys.stdout.flush()
        sys.stderr.flush()


def end(process: BaseProcess) -> None:
    """A moment to leave by itself, then no more: with all that it started."""
    process.join(1)
    assert process.pid is not None
    with suppress(ProcessLookupError, PermissionError):  # it has gone, or has not yet its group
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
