"""Stage 1 of a published model through the real trainer: seconds, images, memory."""

import statistics
import time
from collections.abc import Sequence

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from rtdmd_lightning.benchmarking.probe import Probe
from rtdmd_lightning.benchmarking.profile import ProfiledPhase
from rtdmd_lightning.benchmarking.runs import PAPER_RATIO, RUNS, TINY, random_run
from rtdmd_lightning.benchmarking.stopwatch import Stopwatch, sampling_seconds
from rtdmd_lightning.modules import ACDMDModule

FAKE, GENERATOR, ROLLOUT, MEMORY = "fake-score update", "generator update", "rollout", "peak memory"


class WithinTime(Callback):
    """Says when the first step begins, restarts the memory's peak after the warm-up, and ends a run that has no time for a
    further step and for what comes after the last."""

    def __init__(self, probe: Probe, warm_up: int, reserve: float) -> None:
        self.probe, self.warm_up, self.reserve = probe, warm_up, reserve
        self.begun = time.perf_counter()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 0:
            size = sum(parameter.numel() for parameter in pl_module.parameters()) / 1e9
            self.probe.row("built", time.perf_counter() - self.begun, "s", note=f"{size:.2f} G parameters")
        if batch_idx == self.warm_up and self.probe.on_accelerator:
            torch.accelerator.reset_peak_memory_stats()
        self.probe.synchronize()
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.probe.synchronize()
        seconds = time.perf_counter() - self.started
        if batch_idx == 0:
            self.probe.row("first step", seconds, "s")
        if self.probe.left() < 1.5 * seconds + self.reserve:
            trainer.should_stop = True


def cold_start(
    probe: Probe, name: str, options: Sequence[str] = (), *, cycles: int = 3, warm_up: int = 1, profiled: bool = False
) -> None:
    """Cycles of one fake-score update and one generator update each, of a run of `RUNS` with further options.

    With `profiled` one more cycle follows, whose fake-score update is profiled.
    """
    published = RUNS[name]
    sized = [*published.options, *(TINY if probe.small else ()), *options]
    watch, profile = Stopwatch(warm_up), ProfiledPhase(probe, "fake_updates", warm_up + cycles)

    def report(trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, ACDMDModule)
        if not watch.seconds:
            return probe.row("cycles", "no time for one after the warm-up")
        seconds = {phase: statistics.median(times[:cycles]) for phase, times in watch.seconds.items()}
        fake, generator, rollout = seconds["fake_updates"], seconds["generator_update"], seconds["rollout"]
        note = f"median of {min(cycles, len(watch.seconds['rollout']))}"
        probe.near(FAKE, fake, "s", None if options else published.fake_update, note=note)
        probe.near(GENERATOR, generator, "s", None if options else published.generator_update)
        probe.row(ROLLOUT, rollout, "s", note=f"{module.batch_size} samples, {module.sampler.steps} steps")
        probe.row(
            "trained images/s",
            images_per_second(module, rollout, fake, generator),
            "1/s",
            note=f"with {PAPER_RATIO} fake-score updates a cycle",
        )
        memory(probe)
        if profiled:
            probe.attempt("profile", profile.report, fake)
        prompts = watch.prompts[: module.batch_size]
        drawn = probe.attempt("drawing", sampling_seconds, module, prompts, 1, 1)
        if drawn:
            probe.row("drawn images/s (decoded)", len(prompts) / drawn[0], "1/s")

    callbacks = [profile] * profiled + [
        WithinTime(probe, warm_up, reserve=3),
        watch,
        LambdaCallback(on_train_end=report),
    ]
    with random_run(
        probe, published.config, sized, warm_up + cycles + profiled, small=probe.small, callbacks=callbacks
    ) as run:
        run.trainer.fit(run.model, run.datamodule)


def images_per_second(module: ACDMDModule, rollout: float, fake: float, generator: float) -> float:
    """Of a cycle as the paper has it, from the seconds of its parts."""
    rollouts = -(-PAPER_RATIO // module.sampler.steps)
    seconds = rollouts * rollout + PAPER_RATIO * fake + generator
    return (PAPER_RATIO + 1) * module.batch_size / seconds


def memory(probe: Probe) -> None:
    peak = probe.peak_gib()
    if peak is not None:
        reserved = torch.accelerator.max_memory_reserved() / 2**30
        probe.row(MEMORY, peak, "GiB", note=f"reserved {reserved:.1f} GiB")
