"""Checkpoints that wait for a number which nothing logs would never be written, and nobody would be told."""

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from rtdmd_lightning.callbacks.reward_eval import RewardEvalCallback
from rtdmd_lightning.utils.errors import require

EVALUATED = "eval/"  # how the names of an evaluation's numbers begin


def check_monitors(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Refuse a `ModelCheckpoint` whose `monitor` is of an evaluation that does not log it. Reads no weights. Raises UserError.

    The names of other numbers are known only when they are logged.
    """
    names = [
        name
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, RewardEvalCallback)
        for name in callback.logged(module)
    ]
    for checkpoints in trainer.checkpoint_callbacks:
        if not isinstance(checkpoints, ModelCheckpoint) or not (checkpoints.monitor or "").startswith(EVALUATED):
            continue
        require(
            checkpoints.monitor in names,
            f"a ModelCheckpoint has the monitor {checkpoints.monitor}, which no evaluation logs; the run's evaluation logs "
            f"{', '.join(names) or 'nothing: callbacks.evaluation is null'}",
        )
