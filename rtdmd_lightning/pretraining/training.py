"""How the toy world's own networks are trained."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from rtdmd_lightning.callbacks import Interruption
from rtdmd_lightning.utils.checkpointing import CHECKPOINTS


def fit(module, batches, run_dir: Path, steps: int, *, precision="32-true", callbacks=()) -> None:
    """One resumable Lightning run: started again, it goes on from its last checkpoint.

    Args:
        module: what is trained.
        batches: the DataLoader, as often as `steps` needs it.
        run_dir: checkpoints and TensorBoard logs.
        steps: optimizer steps, those of earlier starts included.
        precision: Lightning's.
        callbacks: further ones.
    """
    checkpoints = ModelCheckpoint(run_dir / CHECKPOINTS, save_last=True, every_n_train_steps=500)
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        precision=precision,
        gradient_clip_val=1.0,
        logger=TensorBoardLogger(run_dir, name="", version=""),
        default_root_dir=run_dir,
        callbacks=[checkpoints, RichProgressBar(), *callbacks, Interruption()],
        log_every_n_steps=20,
        enable_model_summary=False,
    )
    trainer.fit(module, batches, ckpt_path="last")
