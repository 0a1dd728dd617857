"""Telling of reward hacking: what is trained on rises, what is not falls."""

from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from rtdmd_lightning.callbacks.measures import Evaluation
from rtdmd_lightning.callbacks.protocols import HasRewards
from rtdmd_lightning.callbacks.reward_eval import RewardEvalCallback
from rtdmd_lightning.utils.checkpointing import CHECKPOINTS
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.loggers import log_warning
from rtdmd_lightning.utils.run_folder import run_folder

CHECKPOINT = "alarm.ckpt"


@dataclass(frozen=True)
class Peak:
    """The evaluation at which a held-out measure stood highest, and the trained reward then."""

    step: int
    score: float
    trained: float


class RewardHackingAlarm(L.Callback):
    """Warns when the trained reward has risen while a measure that is not trained on has fallen.

    It hears every evaluation of the run's `RewardEvalCallback`. Each held-out measure (a reward that is not trained on, or the
    diversity) is compared with the evaluation at which it stood highest, the first one where it has only fallen since. The
    alarm is a warning, in TensorBoard a text under `eval/alarm`, and in Weights & Biases an alert.

    Args:
        max_drop: the fraction of its highest value that a measure may lose while the trained reward rises.
        stop: end the run at an alarm. Its state is in `RUN_DIR/checkpoints/alarm.ckpt` then, to go on from with
            `--ckpt_path` if the alarm was a false one (and `stop` is off, or it stops at the next evaluation again).
    """

    def __init__(self, max_drop: float = 0.2, stop: bool = False) -> None:
        if not 0 < max_drop < 1:
            raise UserError(f"the alarm's max_drop must lie between 0 and 1, not {max_drop}")
        self.max_drop = max_drop
        self.stop = stop
        self.peaks: dict[str, Peak] = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: asdict(peak) for name, peak in self.peaks.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.peaks = {name: Peak(**peak) for name, peak in state_dict.items()}

    def setup(self, trainer, pl_module: L.LightningModule, stage: str) -> None:
        evaluations = [callback for callback in trainer.callbacks if isinstance(callback, RewardEvalCallback)]
        if len(evaluations) != 1 or not isinstance(pl_module, HasRewards):
            raise UserError(
                "RewardHackingAlarm wants a module that is trained on rewards and one RewardEvalCallback beside it, "
                f"not {type(pl_module).__name__} and {len(evaluations)}"
            )
        evaluations[0].listener = self.hear

    def hear(self, trainer: L.Trainer, evaluation: Evaluation) -> None:
        """Every rank comes to the same verdict: the scores are means over all of them."""
        fallen = self.fallen(evaluation)
        if not fallen:
            return
        text = f"step {evaluation.step}: the trained reward rises at the cost of what is not trained on. {' '.join(fallen)}"
        rank_zero_warn(text)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                log_warning(logger, "eval/alarm", text, evaluation.step)
        if self.stop:
            trainer.save_checkpoint(run_folder(trainer) / CHECKPOINTS / CHECKPOINT)
            trainer.should_stop = True

    def fallen(self, evaluation: Evaluation) -> list[str]:
        """A sentence for each measure that has fallen too far; the evaluation is remembered where it is a new peak."""
        found = []
        for name, score in evaluation.held_out.items():
            peak = self.peaks.get(name)
            if peak is None or score >= peak.score:
                self.peaks[name] = Peak(evaluation.step, score, evaluation.trained)
            elif evaluation.trained > peak.trained and peak.score - score > self.max_drop * abs(peak.score):
                found.append(
                    f"Since step {peak.step} it rose from {peak.trained:.4f} to {evaluation.trained:.4f}, "
                    f"{name} fell from {peak.score:.4f} to {score:.4f}."
                )
        return found
