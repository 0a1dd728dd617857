"""What a check has at hand: its device, its time, a clock, and where it reports."""

import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rtdmd_lightning.benchmarking.report import Row
from rtdmd_lightning.planning.estimate import GIB
from rtdmd_lightning.utils.processes import synchronize

ERROR = "ERROR"


@dataclass
class Probe:
    """Given to a check by the conductor.

    Args:
        check: the check's name.
        device: what is measured.
        small: tiny shapes, by which nothing is judged: to try the command.
        output: the report's file; a check may write beside it.
        seconds: how long the check may take.
        send: where rows go.
        found: numbers of the checks before, by check and what was measured.
    """

    check: str
    device: torch.device
    small: bool
    output: Path
    seconds: float
    send: Callable[[Row], None]
    found: Mapping[tuple[str, str], float] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds."""
        return self.begun + self.seconds - time.monotonic()

    def row(
        self,
        what: str,
        value: float | str,
        unit: str = "",
        expected: str = "",
        good: bool | None = None,
        note: str = "",
    ) -> None:
        self.send(Row(self.check, what, value, unit, expected, good, note))

    def at_most(self, what: str, value: float, limit: float, note: str = "") -> None:
        """A number and the largest that is right."""
        self.row(what, value, "", f"<= {limit:.0e}", value <= limit, note)

    def near(
        self, what: str, value: float, unit: str, expected: float | None, factor: float = 1.5, note: str = ""
    ) -> None:
        """A number and its prediction: good within a factor."""
        if self.small or expected is None:
            return self.row(what, value, unit, note=note)
        return self.row(what, value, unit, f"{expected:g}", expected / factor <= value <= expected * factor, note)

    def attempt(self, what: str, function: Callable[..., Any], *arguments: Any, least: float = 3.0) -> Any:
        """Call a part of a check. Its failure is a row, and the parts after it go on; with less than `least` seconds left it is
        not begun. Returns None then."""
        if self.left() < least:
            return self.row(what, "not begun", note=f"{self.left():.0f} s left")
        try:
            return function(*arguments)
        except Exception as error:
            self.error(what, error)
            return None

    def error(self, what: str, error: BaseException) -> None:
        """Its first line and the innermost two places of this package; the traceback goes to the log."""
        traceback.print_exception(error)
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "rtdmd_lightning" in frame.filename] or list(frames)
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours[-2:][::-1])
        said = (str(error).strip().splitlines() or [""])[0][:300]
        self.row(what, ERROR, good=False, note=f"{type(error).__name__}: {said} ({where})")

    # The device ---------------------------------------------------------------------------------------------------------

    @property
    def on_accelerator(self) -> bool:
        return self.device.type != "cpu"

    def synchronize(self) -> None:
        synchronize(self.device)

    def clock(self, function: Callable[[], Any], repeats: int = 5, warm_up: int = 2) -> float:
        """Median seconds of a call, the device's work included."""
        seconds = []
        for number in range(warm_up + repeats):
            self.synchronize()
            start = time.perf_counter()
            function()
            self.synchronize()
            if number >= warm_up:
                seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def restart_peak(self) -> None:
        """Let `peak_gib` begin anew."""
        if self.on_accelerator:
            torch.accelerator.empty_cache()
            torch.accelerator.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """GiB that tensors had at most; None on a CPU."""
        return torch.accelerator.max_memory_allocated() / GIB if self.on_accelerator else None

    def memory_gib(self) -> float | None:
        """GiB that the device has; None of a CPU."""
        if not self.on_accelerator:
            return None
        return torch.get_device_module(self.device).get_device_properties(self.device).total_memory / GIB
