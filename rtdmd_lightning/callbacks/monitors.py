"""Checkpoints that wait for a number which nothing logs would never be written, and nobody would be told."""

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from rtdmd_lightning.callbacks.reward_eval import RewardEvalCallback
from rtdmd_lightning.utils.curve_names import OF_EVALUATIONS
from rtdmd_lightning.utils.errors import require


def check_monitors(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Refuse a `ModelCheckpoint` whose `monitor` is of an evaluation that does not log it. Reads no weights. Raises UserError.

    The names of other numbers are known only when they are logged: see `MonitorsAreLogged`.
    """
    names = [
        name
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, RewardEvalCallback)
        for name in callback.logged(module)
    ]
    for checkpoints in trainer.checkpoint_callbacks:
        if not isinstance(checkpoints, ModelCheckpoint) or not (checkpoints.monitor or "").startswith(OF_EVALUATIONS):
            continue
        require(
            checkpoints.monitor in names,
            f"a ModelCheckpoint has the monitor {checkpoints.monitor}, which no evaluation logs; the run's evaluation logs "
            f"{', '.join(names) or 'nothing: callbacks.evaluation is null'}",
        )


class MonitorsAreLogged(L.Callback):
    """Ends a run whose `ModelCheckpoint` has a `monitor` that is not there when it is first asked. Raises UserError.

    Lightning would go on without that checkpoint, and not say so.
    """

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        for checkpoints in trainer.checkpoint_callbacks:
            if not isinstance(checkpoints, ModelCheckpoint) or checkpoints.monitor is None:
                continue
            monitor, every = checkpoints.monitor, max(1, checkpoints._every_n_train_steps)
            if monitor in self._asked or monitor.startswith(OF_EVALUATIONS) or trainer.global_step % every:
                continue
            self._asked.add(monitor)
            logged = trainer.callback_metrics
            require(
                monitor in logged,
                f"a ModelCheckpoint has the monitor {monitor}, which nothing has logged by update {trainer.global_step}; "
                f"logged are {', '.join(sorted(logged))}",
            )
