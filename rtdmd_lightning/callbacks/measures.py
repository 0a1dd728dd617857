"""Which measures of an evaluation are trained on and which are held out, and the two sums that they make."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor

from rtdmd_lightning.callbacks.protocols import HasRewards
from rtdmd_lightning.utils.curve_names import EVALUATED
from rtdmd_lightning.utils.errors import UserError

DIVERSITY = "diversity"


@dataclass(frozen=True)
class Evaluation:
    """What shows over-optimisation: the trained rewards' weighted sum, and each held-out measure by name."""

    step: int
    trained: float
    held_out: dict[str, float]


@dataclass(frozen=True)
class Measures:
    """What is measured, by name, with its weight in the sum that it belongs to."""

    trained: dict[str, float]
    held_out: dict[str, float]

    def sums(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`eval/trained` and `eval/held_out` of the `eval/NAME`; nothing where no reward is trained on, as in stage 1."""
        if not self.trained:
            return {}
        sums = {f"{EVALUATED}trained": self.trained, f"{EVALUATED}held_out": self.held_out}
        return {
            name: torch.stack([weight * scores[f"{EVALUATED}{one}"] for one, weight in weights.items()]).sum()
            for name, weights in sums.items()
            if weights
        }

    def headline(self, scores: Mapping[str, Tensor]) -> dict[str, float]:
        """The scores to look at first: both sums; where no reward is trained on, the first reward's score."""
        names = ["trained", "held_out"] if self.trained else list(self.held_out)[:1]
        return {name: float(scores[f"{EVALUATED}{name}"]) for name in names if f"{EVALUATED}{name}" in scores}

    def evaluation(self, step: int, scores: Mapping[str, Tensor]) -> Evaluation:
        held_out = {name: float(scores[f"{EVALUATED}{name}"]) for name in self.held_out}
        return Evaluation(step, float(scores[f"{EVALUATED}trained"]), held_out)


def trained_weights(module: L.LightningModule) -> dict[str, float]:
    """The rewards that a module is trained on; none in stage 1. One of weight 0 is scored but not trained on."""
    if not isinstance(module, HasRewards):
        return {}
    return {name: weight for name, weight in module.rewards.weights.items() if weight != 0}


def measures_of(measured: Iterable[str], trained: dict[str, float], mixture: Mapping[str, float] | None) -> Measures:
    """Everything measured is either trained on or held out.

    `mixture` weighs what is held out, 0 where it does not say. Without it each held-out reward has weight 1, and the
    diversity, which is on another scale, 0. Raises UserError for a name in it that is trained on or not measured.
    """
    held_out = [name for name in measured if name not in trained]
    weights = {name: float(name != DIVERSITY) for name in held_out} if mixture is None else mixture
    if unknown := [name for name in weights if name not in held_out]:
        raise UserError(
            f"held_out_weights names {unknown[0]!r}, which is trained on or not measured; held out are {held_out}"
        )
    return Measures(trained, {name: weights.get(name, 0.0) for name in held_out})
