"""Scoring the student on held-out prompts while it trains: by what it is trained on and by what it is not."""

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from rtdmd_lightning.callbacks.diversity import DiversitySettings, within_prompt_diversity
from rtdmd_lightning.callbacks.measures import (
    DIVERSITY,
    Evaluation,
    Measures,
    measures_of,
    trained_weights,
)
from rtdmd_lightning.callbacks.protocols import Generates, HasRewards
from rtdmd_lightning.callbacks.records import SCORES, evaluated_steps, record
from rtdmd_lightning.data.prompts import load_prompts, spread
from rtdmd_lightning.evaluation.tasks import in_batches
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import checked_score
from rtdmd_lightning.utils.curve_names import EVALUATED, EVALUATED_BY_TAG
from rtdmd_lightning.utils.errors import UserError, require
from rtdmd_lightning.utils.pictures import Pictures
from rtdmd_lightning.utils.run_folder import run_folder


class RewardEvalCallback(L.Callback):
    """Every `every_n_updates` generator updates: the EMA student draws held-out prompts, rewards score them.

    Logged through torchmetrics, over all ranks: `eval/REWARD` and `eval_by_tag/REWARD/TAG`, the first few under `Summary/` too;
    `ModelCheckpoint(monitor="eval/REWARD")` sees them. `grid` of the images, the same prompts and noise every time, go with their
    prompts to TensorBoard, to Weights & Biases and to `RUN_DIR/images/step_N.png`; the scores, with the seconds spent training
    so far, to `RUN_DIR/eval.jsonl`.

    A module that is trained on rewards is scored by its own, listed or not. `eval/trained` is their weighted sum,
    `eval/held_out` that of the measures that are not trained on, by which to keep the best checkpoint.

    A checkpoint callback is asked after updates alone, at its own interval: the evaluations before the first update and, off
    the interval, after the last are logged and written like the others, but no `monitor` sees them.

    Args:
        prompts: held-out prompts, see `load_prompts`; they are read when the run starts.
        rewards: what to score with; their names must differ.
        every_n_updates: generator updates between two evaluations; one more comes at the end.
        batch_size: images drawn at once on each process.
        grid: how many images are shown.
        seed: of the images' noise.
        at_start: evaluate before the first update too.
        diversity: log `eval/diversity`, see `within_prompt_diversity`.
        held_out_weights: of `eval/held_out`, by the name of a reward or `diversity`; see `measures.measures_of`.
    """

    def __init__(
        self,
        prompts: str,
        rewards: list[Reward],
        every_n_updates: int,
        batch_size: int = 60,
        grid: int = 24,
        seed: int = 1234,
        at_start: bool = False,
        diversity: DiversitySettings | None = None,
        held_out_weights: dict[str, float] | None = None,
    ) -> None:
        if len({reward.name for reward in rewards}) != len(rewards):
            raise UserError(f"reward names must differ: {[reward.name for reward in rewards]}")
        counts = {"every_n_updates": every_n_updates, "batch_size": batch_size, "grid": grid}
        for name, count in counts.items():
            require(count >= 1, f"RewardEvalCallback: {name} must be at least 1, not {count}")
        self.prompts = prompts
        self.rewards = {reward.name: reward for reward in rewards}
        self.every_n_updates = every_n_updates
        self.batch_size = batch_size
        self.grid = grid
        self.seed = seed
        self.at_start = at_start
        self.diversity = diversity
        self.held_out_weights = held_out_weights
        self.measures = Measures({}, {})
        self.headline: dict[str, float] = {}
        self.listener: Callable[[L.Trainer, Evaluation], None] | None = None
        self.training_seconds = 0.0
        self._batch_started = 0.0
        self._last_evaluated = -1

    @cached_property
    def metadata(self) -> list[dict]:
        return load_prompts(self.prompts)

    @property
    def measured(self) -> list[str]:
        """The rewards, and the diversity where it is wanted."""
        return [*self.rewards] if self.diversity is None else [*self.rewards, DIVERSITY]

    def state_dict(self) -> dict[str, Any]:
        return {"training_seconds": self.training_seconds, "last_evaluated": self._last_evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.training_seconds, self._last_evaluated = state_dict["training_seconds"], state_dict["last_evaluated"]

    # When -------------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Whatever is wrong with prompts or weights is told before a model is loaded."""
        self.choose_measures(pl_module)

    def logged(self, pl_module: L.LightningModule) -> list[str]:
        """The names of all that an evaluation logs."""
        self.choose_measures(pl_module)
        names = self.metric_names()
        return [*names, *self.measures.sums(dict.fromkeys(names, torch.zeros(())))]

    def choose_measures(self, pl_module: L.LightningModule) -> None:
        assert self.metadata
        trained = trained_weights(pl_module)
        if isinstance(pl_module, HasRewards):  # their networks are in memory anyway
            own = {name: pl_module.rewards.rewards[name] for name in trained}
            self.rewards = own | {name: reward for name, reward in self.rewards.items() if name not in own}
        self.measures = measures_of(self.measured, trained, self.held_out_weights)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The held-out rewards lie where the trained ones do."""
        own = pl_module.rewards.rewards.values() if isinstance(pl_module, HasRewards) else ()
        offloaded = any(reward.offloaded for reward in own)
        for reward in self.rewards.values():
            reward.offloaded = reward.offloaded or offloaded
            reward.to(pl_module.device)

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        """The one epoch of a run. By now every callback is ready, the one that hears signals too."""
        if self.at_start and trainer.global_step == 0:
            self.evaluate(trainer, pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        self._batch_started = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        self.training_seconds += time.perf_counter() - self._batch_started
        if trainer.global_step % self.every_n_updates == 0:
            pl_module.log_dict(self.evaluate(trainer, pl_module), logger=False)  # for monitors; loggers have it already

    def on_train_end(self, trainer, pl_module) -> None:
        if self._last_evaluated != trainer.global_step:
            self.evaluate(trainer, pl_module)

    def on_fit_end(self, trainer, pl_module) -> None:
        """Lightning calls no `on_train_end` where the resumed checkpoint is the run's end: it may lack its evaluation."""
        written = trainer.is_global_zero and trainer.global_step in evaluated_steps(run_folder(trainer) / SCORES)
        if self._last_evaluated != trainer.global_step and not trainer.strategy.broadcast(written):
            pl_module.to(trainer.strategy.root_device)
            self.on_train_start(trainer, pl_module)
            self.evaluate(trainer, pl_module)

    # What -------------------------------------------------------------------------------------------------------------

    def evaluate(self, trainer: L.Trainer, pl_module: Generates) -> dict[str, Tensor]:
        """Draw and score, and record it; the mean of every metric over all ranks."""
        self._last_evaluated = trainer.global_step
        metrics = {
            name: MeanMetric(nan_strategy="error", sync_on_compute=True).to(pl_module.device)
            for name in self.metric_names()
        }
        self.score_rewards(trainer, pl_module, metrics)
        if self.diversity is not None:
            self.score_diversity(trainer, pl_module, self.diversity, metrics[f"{EVALUATED}{DIVERSITY}"])
        scores = {name: metric.compute() for name, metric in metrics.items()}
        scores |= self.measures.sums(scores)
        self.headline = self.measures.headline(scores)
        pictures = self.draw_pictures(pl_module)
        if trainer.is_global_zero:
            numbers = {name: float(score) for name, score in scores.items()}
            record(trainer, self.training_seconds, numbers, self.headline, pictures)
        if self.listener is not None:
            self.listener(trainer, self.measures.evaluation(trainer.global_step, scores))
        return scores

    def score_rewards(self, trainer: L.Trainer, pl_module: Generates, metrics: dict[str, MeanMetric]) -> None:
        """One image of every prompt."""
        for indices in local_batches(len(self.metadata), self.batch_size, trainer.global_rank, trainer.world_size):
            images = self.draw(pl_module, indices or [0])  # a rank with nothing left draws along: see `local_batches`
            metadata = [self.metadata[index] for index in indices]
            if not metadata:
                continue
            prompts = [entry["prompt"] for entry in metadata]
            for name, reward in self.rewards.items():
                with reward.at_work():
                    of_images = checked_score(reward, images, prompts, metadata)
                for value, entry in zip(of_images, metadata, strict=True):
                    metrics[f"{EVALUATED}{name}"].update(value)
                    if "tag" in entry:
                        metrics[f"{EVALUATED_BY_TAG}{name}/{entry['tag']}"].update(value)

    def score_diversity(
        self, trainer: L.Trainer, pl_module: Generates, settings: DiversitySettings, metric: MeanMetric
    ) -> None:
        """Several images of some prompts, whole groups at once."""
        members, chosen = settings.images_per_prompt, spread(len(self.metadata), settings.prompts)
        groups = max(1, self.batch_size // members)
        for part in local_batches(len(chosen), groups, trainer.global_rank, trainer.world_size):
            firsts = [chosen[position] for position in part or [0]]
            images = self.draw(pl_module, [i + k * len(self.metadata) for i in firsts for k in range(members)])
            if part:
                metric.update(within_prompt_diversity(images.unflatten(0, (len(firsts), members))))

    def draw(self, pl_module: Generates, indices: list[int]) -> Tensor:
        """Image i is of prompt i modulo their number, from a noise of its own."""
        prompts = [self.metadata[index % len(self.metadata)]["prompt"] for index in indices]
        return pl_module.generate(prompts, indices, seed=self.seed)

    def draw_pictures(self, pl_module: Generates) -> Pictures:
        shown = spread(len(self.metadata), self.grid)
        images = [self.draw(pl_module, part).cpu() for part in in_batches(shown, self.batch_size)]
        return Pictures(torch.cat(images), [self.metadata[index]["prompt"] for index in shown])

    def metric_names(self) -> list[str]:
        tags = dict.fromkeys(entry["tag"] for entry in self.metadata if "tag" in entry)
        by_tag = [f"{EVALUATED_BY_TAG}{name}/{tag}" for name in self.rewards for tag in tags]
        return [f"{EVALUATED}{name}" for name in self.measured] + by_tag


def evaluation_of(trainer: L.Trainer) -> RewardEvalCallback | None:
    """The run's evaluation, if it has one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined] # Lightning sets it from elsewhere
    return next((callback for callback in callbacks if isinstance(callback, RewardEvalCallback)), None)


def local_batches(total: int, size: int, rank: int, world_size: int) -> list[list[int]]:
    """A rank's part of `range(total)`, at most `size` at once.

    Every rank gets equally many batches, if need be an empty last one: sharded forward passes need every rank.
    """
    starts = range(rank * size, total + rank * size, size * world_size)
    return [list(range(min(start, total), min(start + size, total))) for start in starts]
