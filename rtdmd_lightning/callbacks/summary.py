"""The few numbers by which one sees how a run goes: the curves under `Summary/`, which the console shows too."""

import time
from collections.abc import Mapping

import lightning as L
import torch
from torch import Tensor

from rtdmd_lightning.callbacks.measures import trained_weights
from rtdmd_lightning.utils.curve_names import SUMMARY

LOSSES = {"generator_loss": "generator/loss", "fake_score_loss": "fake_score/loss"}


class Summary(L.Callback):
    """Logs under `Summary/`, after every update:

    * `reward`: of what is trained on rewards, their weighted sum, the mean over the update's own images;
    * `generator_loss`, `fake_score_loss`: in stage 1 the mean over the segments of the last that each had;
    * `images_per_second`: the update's prompts, over all processes, by the seconds that it took without its evaluation.

    `RewardEvalCallback` adds its own, see `measures.headline`.
    """

    def __init__(self) -> None:
        self._began = 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        seconds = time.perf_counter() - self._began
        numbers = of_update(trainer.callback_metrics, trained_weights(pl_module))
        numbers["images_per_second"] = torch.tensor(len(batch.prompts) * trainer.world_size / seconds)
        pl_module.log_dict({f"{SUMMARY}{name}": number for name, number in numbers.items()})


def of_update(metrics: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """`reward` and the losses, as `Summary` describes them, of all that a run has logged; `weights` are the trained rewards'."""
    found = {}
    rewards = [weight * metrics[f"reward/{name}"] for name, weight in weights.items() if f"reward/{name}" in metrics]
    if rewards:
        found["reward"] = sum(rewards[1:], start=rewards[0])
    for title, beginning in LOSSES.items():
        losses = [value for name, value in metrics.items() if name.startswith(beginning)]
        if losses:
            found[title] = sum(losses[1:], start=losses[0]) / len(losses)
    return found
