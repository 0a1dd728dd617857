"""The console of a training run: which update it is, how long the rest takes, and the numbers of the stage."""

import time
from collections import deque
from collections.abc import Mapping

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from rtdmd_lightning.callbacks.measures import trained_weights
from rtdmd_lightning.callbacks.reward_eval import evaluation_of
from rtdmd_lightning.callbacks.summary import of_update
from rtdmd_lightning.utils.errors import require

REMEMBERED = 20  # durations that a mean is taken of
BAR, SHORTEST_BAR = 20, 6  # letters
TITLES = {"generator_loss": "loss", "fake_score_loss": "fake-score loss", "held_out": "held out"}


class TrainingProgress(ProgressBar):
    """In a terminal a bar, `update 5/24`, with the time that is left and what fits beside it; in a log file a line now and then.

    The time counts the evaluations that are still to come, once one was measured. Stage 1 shows its two losses and the first
    score of the last evaluation; what is trained on rewards shows their weighted sum, of the update's images, and the held-out
    score of the last evaluation.

    Args:
        every_seconds: between two lines of a log file.
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        super().__init__()
        require(every_seconds > 0, f"TrainingProgress: every_seconds must be above 0, not {every_seconds}")
        self.every_seconds = every_seconds
        self.console = Console()
        self._enabled = True
        self._bar: Progress | None = None
        self._updates: deque[float] = deque(maxlen=REMEMBERED)
        self._evaluations: deque[float] = deque(maxlen=REMEMBERED)
        self._began = self._ended = self._told = 0.0
        self._evaluating = False

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        """On every process but the first."""
        self._enabled = False

    # When -------------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled:
            return
        self._ended = self._told = time.perf_counter()
        evaluation = evaluation_of(trainer)
        self._evaluating = evaluation is not None and evaluation.at_start and trainer.global_step == 0
        if self.console.is_terminal:
            columns = (TextColumn("[bold]{task.description}"), BarColumn(BAR), TextColumn("{task.fields[told]}"))
            self._bar = Progress(*columns, console=self.console, refresh_per_second=2)
            self._task = self._bar.add_task("", total=trainer.max_steps if trainer.max_steps > 0 else None, told="")
            self._bar.start()
        self.tell(trainer, pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        now = time.perf_counter()
        if self._evaluating:
            self._evaluations.append(now - self._ended)
        elif self._updates:
            self._updates[-1] += now - self._ended  # checkpoints and the like
        was_evaluating, self._began, self._evaluating = self._evaluating, now, False
        if was_evaluating and self._bar is not None:
            self.tell(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if not self._enabled:
            return
        self._ended = time.perf_counter()
        if trainer.global_step == 2 and len(self._updates) == 1:
            self._updates.clear()  # the first update warms up, and may compile
        self._updates.append(self._ended - self._began)
        evaluation = evaluation_of(trainer)
        self._evaluating = evaluation is not None and trainer.global_step % evaluation.every_n_updates == 0
        self.tell(trainer, pl_module)

    def on_train_end(self, trainer, pl_module) -> None:
        if self._bar is not None:
            self._evaluating = False
            self.tell(trainer, pl_module)

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        self.stop()

    def teardown(self, trainer, pl_module, stage: str) -> None:
        self.stop()

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    # What -------------------------------------------------------------------------------------------------------------

    def tell(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Update the bar; in a log file write a line, unless the last one is recent and this is not the end."""
        step, last = trainer.global_step, trainer.max_steps
        now = time.perf_counter()
        if self._bar is None and (step == 0 or (now - self._told < self.every_seconds and step != last)):
            return
        self._told = now
        evaluation = evaluation_of(trainer)
        headline = evaluation.headline if evaluation else {}
        numbers = numbers_of(trainer.callback_metrics, trained_weights(pl_module), headline)
        left = self.seconds_left(trainer)
        parts = [
            *(["evaluating"] if self._evaluating else []),
            *([f"{_clock(left)} left"] if left is not None and left > 0 else []),
            *(f"{name} {value:.3g}" for name, value in numbers.items()),
        ]
        title = f"update {step}/{last}" if last > 0 else f"update {step}"
        if self._bar is None:
            self.console.print("  ".join([title, *parts]), highlight=False, soft_wrap=True)
        else:
            told = fitting(parts, self.console.width - len(title) - SHORTEST_BAR - 2)
            self._bar.update(self._task, description=title, completed=step, told=told)

    def seconds_left(self, trainer: L.Trainer) -> float | None:
        """None for a run without an end, and before the first update."""
        if trainer.max_steps < 0 or not self._updates:
            return None
        evaluation = evaluation_of(trainer)
        every = evaluation.every_n_updates if evaluation else None
        count = evaluations_left(trainer.global_step, trainer.max_steps, every) + self._evaluating
        seconds = sum(self._updates) / len(self._updates) * (trainer.max_steps - trainer.global_step)
        return seconds + count * (sum(self._evaluations) / len(self._evaluations) if self._evaluations else 0.0)


def evaluations_left(step: int, last: int, every: int | None) -> int:
    """After update `step` of `last`, with an evaluation after every `every` updates and one more at the end."""
    return 0 if every is None else -(-last // every) - step // every


def fitting(parts: list[str], width: int) -> str:
    """As many of the parts, from the first, as fit into so many letters."""
    while len(told := "  ".join(parts)) > width and parts:
        parts = parts[:-1]
    return told


def numbers_of(
    metrics: Mapping[str, Tensor], weights: Mapping[str, float], headline: Mapping[str, float]
) -> dict[str, float]:
    """The two or three numbers of the stage that a run is in, of all that it has logged, the most telling first.

    `weights` are the trained rewards', `headline` is the last evaluation's.
    """
    update = of_update(metrics, weights)
    shown = ["reward"] if weights else ["generator_loss", "fake_score_loss"]
    numbers = {name: score for name, score in headline.items() if name != "trained"}
    numbers |= {name: float(update[name]) for name in shown if name in update}
    return {TITLES.get(name, name): number for name, number in numbers.items()}


def _clock(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
