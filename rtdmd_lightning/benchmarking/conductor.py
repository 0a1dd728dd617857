"""Runs checks one after the other, each in a process of its own, and hands on what they find.

A server imports the slow libraries once and is forked for every check (`multiprocessing`'s forkserver), so that a check begins in
a moment. Nothing before the fork may touch the device: a forked process could not use it.
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
from pathlib import Path

import torch

from rtdmd_lightning.benchmarking.checks import Check
from rtdmd_lightning.benchmarking.probe import Probe
from rtdmd_lightning.benchmarking.report import Report, Row

DONE = "done"
CHILD_MARGIN = 2.0
"""Seconds that a check knows nothing of, so that it ends by itself before it is ended."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a library that asks whether there is a GPU must not spoil the fork
}


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
        self.until = time.monotonic() + self.seconds

    def play(self, checks: Sequence[Check]) -> None:
        os.environ.update(ENVIRONMENT)
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload([Check.__module__])
        for check in checks:
            left = self.until - time.monotonic()
            if check.if_failed is not None and not self.report.failed(check.if_failed):
                continue
            if left < check.least:
                self.report.add(Row(check.name, "not begun", f"{left:.0f} s left", note=f"it wants {check.least:.0f}"))
                continue
            self.perform(check, processes)
            self.compare(check)

    def perform(self, check: Check, processes) -> None:
        """Begin the check, pass its rows on, end it. Its process leads a group of its own, which is ended with it."""
        seconds = min(check.seconds, self.until - time.monotonic())
        reader, writer = processes.Pipe(duplex=False)
        found = {(row.check, row.what): row.value for row in self.report.rows if not isinstance(row.value, str)}
        given = (check, self.device, self.small, self.report.output, seconds - CHILD_MARGIN, found, writer)
        process = processes.Process(target=carry_out, args=given, daemon=False)
        process.start()
        writer.close()
        try:
            ended = self.listen(reader, time.monotonic() + seconds)
            if ended is None:
                self.report.add(Row(check.name, "ENDED", f"after {seconds:.0f} s", good=False, note="it was not done"))
            elif ended != DONE:
                process.join(5)
                self.report.add(
                    Row(check.name, "CRASHED", f"exit code {process.exitcode}", good=False, note="see the log")
                )
        finally:
            end(process)

    def listen(self, reader: Connection, until: float) -> str | None:
        """Pass rows on until the check says that it is done; "" where its process died, None where its time is up."""
        while reader.poll(max(0.0, until - time.monotonic())):
            try:
                message = reader.recv()
            except EOFError:
                return ""
            if message == DONE:
                return DONE
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
    with log(output.with_suffix(".log"), check.name):
        warnings.simplefilter("ignore")
        probe = Probe(check.name, device, small, output, seconds, connection.send, found)
        try:
            begin(check, probe)
        except Exception as error:
            probe.error(check.name, error)
        connection.send(DONE)


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


def end(process) -> None:
    """A moment to leave by itself, then no more: with all that it started."""
    process.join(1)
    for kill in (lambda: os.killpg(process.pid, signal.SIGKILL), process.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill()
    process.join()
