"""What a training run is timed by, from outside: callbacks that read the run's own `time/…` logs."""

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass

import lightning as L

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.utils.processes import synchronize


@dataclass(frozen=True)
class Timing:
    """Median and quartiles of some seconds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4f} | {self.low:.4f} to {self.high:.4f}"

    @staticmethod
    def of(seconds: list[float], *, parts: int = 1) -> "Timing":
        """Each of `seconds` was taken by `parts` equal pieces of work; the timing is of one."""
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return Timing(median / parts, low / parts, high / parts)


class Stopwatch(L.Callback):
    """Keeps, of every step after the first `warm_up`, its seconds and its `time/…` logs; and the prompts of the last."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.prompts: list[str] = []

    def on_train_batch_start(self, trainer, pl_module, batch: PromptBatch, batch_idx: int) -> None:
        synchronize(pl_module.device)
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch: PromptBatch, batch_idx: int) -> None:
        synchronize(pl_module.device)
        step = time.perf_counter() - self._started
        self.prompts = batch.prompts
        if batch_idx < self.warm_up:
            return
        self.seconds["training_step"].append(step)
        for name, value in trainer.callback_metrics.items():
            if name.startswith("time/"):
                self.seconds[name.removeprefix("time/")].append(float(value))


def sampling_seconds(module: FewStepModule, prompts: list[str], warm_up: int, repeats: int) -> list[float]:
    """Of drawing and decoding one batch with the few-step student."""
    seconds = []
    for repeat in range(warm_up + repeats):
        synchronize(module.device)
        start = time.perf_counter()
        module.generate(prompts, range(len(prompts)), seed=repeat)
        synchronize(module.device)
        seconds.append(time.perf_counter() - start)
    return seconds[warm_up:]
