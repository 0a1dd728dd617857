"""Where the time of one phase of a training step goes, by torch's profiler."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Callback
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from rtdmd_lightning.benchmarking.probe import Probe

LISTED = 10
HOST_CALLS = ("cu", "aten::item", "aten::_local_scalar_dense")


class ProfiledPhase(Callback):
    """Profiles one phase of one step: the body of the module's `timed(phase)`.

    Args:
        probe: where `report` reports.
        phase: as the module names it in its `time/…` logs.
        step: counted from 0.
    """

    def __init__(self, probe: Probe, phase: str, step: int) -> None:
        self.probe, self.phase, self.step = probe, phase, step
        self.profiler: profile | None = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx != self.step:
            return
        timed, activities = pl_module.timed, [ProfilerActivity.CPU]
        activities += [ProfilerActivity.CUDA] * self.probe.on_accelerator

        @contextmanager
        def watched(name: str) -> Iterator[None]:
            if name != self.phase:
                with timed(name):
                    yield
                return
            self.probe.synchronize()
            with profile(activities=activities) as self.profiler, timed(name):
                yield

        pl_module.timed = watched

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx == self.step:
            del pl_module.timed

    def report(self, seconds: float) -> None:
        """Busy time, waits and the longest kernels; `seconds` is what the phase takes without a profiler."""
        if self.profiler is None:
            return self.probe.row("profile", "not begun", note="the run ended before")
        events = self.profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        kernels = [
            event for event in events if event.device_type() != DeviceType.CPU and not event.is_user_annotation()
        ]
        calls = Counter(
            event.name()
            for event in events
            if event.device_type() == DeviceType.CPU and event.name().startswith(HOST_CALLS)
        )
        busy = covered([(event.start_ns(), event.start_ns() + event.duration_ns()) for event in kernels]) / 1e9
        self.probe.row("profile: device busy", busy, "s", note=f"{len(kernels)} kernels and copies in {self.phase}")
        idle, judged = 1 - busy / seconds, self.probe.on_accelerator and not self.probe.small
        self.probe.row(
            "profile: idle share",
            idle,
            "",
            "< 0.1",
            idle < 0.1 if judged else None,
            "1 - busy / seconds without the profiler",
        )
        waits = calls["cudaStreamSynchronize"] + calls["cudaDeviceSynchronize"]
        self.probe.row(
            "profile: waits for the device",
            waits,
            note=", ".join(f"{name} {count}" for name, count in calls.most_common(8)),
        )
        nanoseconds, count = Counter[str](), Counter[str]()
        for event in kernels:
            nanoseconds[event.name()] += event.duration_ns()
            count[event.name()] += 1
        longest = [(name, time / 1e6, count[name]) for name, time in nanoseconds.most_common()]
        for number, (name, milliseconds, times) in enumerate(longest[:LISTED], 1):
            self.probe.row(f"kernel {number}", milliseconds, "ms", note=f"{times}x {name[:90]}")
        lines = [f"{milliseconds:10.3f} ms {times:6}x  {name}" for name, milliseconds, times in longest]
        self.probe.output.with_suffix(".profile.txt").write_text("\n".join(lines) + "\n")


def covered(spans: list[tuple[int, int]]) -> int:
    """The length of what some spans (start, end) cover together."""
    total = until = 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, until))
        until = max(until, end)
    return total
