"""What is known of the measured runs without a GPU: memory by `plan`, operations of an update. On the CPU, after the others."""

from collections.abc import Iterator
from pathlib import Path

from rtdmd_lightning.benchmarking.counts import count
from rtdmd_lightning.benchmarking.machine import BF16_PEAK
from rtdmd_lightning.benchmarking.probe import Probe
from rtdmd_lightning.benchmarking.report import Report, Row
from rtdmd_lightning.benchmarking.runs import ONE_DEVICE, RUNS, PublishedRun
from rtdmd_lightning.benchmarking.training import FAKE, GENERATOR, MEMORY
from rtdmd_lightning.plan import plan
from rtdmd_lightning.planning import tables
from rtdmd_lightning.planning.estimate import GIB

PREDICTIONS = "predictions"
NOT_CHECKPOINTED = "--model.backbone.gradient_checkpointing=false"
PHASES = {"fake_updates": FAKE, "generator_update": GENERATOR}


def predictions(probe: Probe) -> None:
    """Of every run that `RUNS` has, as far as the time goes."""
    if probe.small:
        return
    for name, run in RUNS.items():
        probe.attempt(f"{name}: memory", memory, probe, name, run)
        if run.fake_update is not None:
            probe.attempt(f"{name}: operations", operations, probe, name, run)


def memory(probe: Probe, name: str, run: PublishedRun) -> None:
    columns, _ = plan(["--config", run.config, *ONE_DEVICE, "--trainer.strategy=auto", *run.options])
    probe.row(f"{name}: {MEMORY}", columns[tables.DDP].with_cached_prompts / GIB, "GiB")


def operations(probe: Probe, name: str, run: PublishedRun) -> None:
    """Those of one update, without what gradient checkpointing computes again."""
    for phase, numbers in count(Path(run.config), [*run.options, NOT_CHECKPOINTED]).items():
        if phase in PHASES:
            probe.row(f"{name}: {PHASES[phase]}", numbers.flops / 1e12, "TFLOP")


def compared(report: Report) -> Iterator[Row]:
    """What was measured against what was predicted: memory, and the share of the device's peak that an update reaches."""
    for name in RUNS:
        planned, measured = report.number(PREDICTIONS, f"{name}: {MEMORY}"), report.number(name, MEMORY)
        if planned and measured:
            good = 0.9 <= planned / measured <= 1.1
            yield Row(
                name,
                f"{MEMORY} by plan, of the measured",
                planned / measured,
                "",
                "0.9 to 1.1",
                good,
                f"{planned:.1f} GiB",
            )
        for update in (FAKE, GENERATOR):
            teraflop, seconds = report.number(PREDICTIONS, f"{name}: {update}"), report.number(name, update)
            if teraflop and seconds:
                note = f"{teraflop:.0f} TFLOP, those of recomputation left out; of an H100's {BF16_PEAK / 1e12:.0f} TFLOP/s"
                yield Row(name, f"{update}: MFU", 1e12 * teraflop / seconds / BF16_PEAK, note=note)
