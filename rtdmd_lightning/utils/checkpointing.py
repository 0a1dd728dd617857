"""Checkpoints that are either whole or absent, and read without running what a file may hold."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from rtdmd_lightning.utils.errors import UserError

CHECKPOINTS, LAST = "checkpoints", "last.ckpt"  # where a run keeps them, and the one to go on from
PARTIAL_SUFFIX = ".partial"  # of a file that is being written
METADATA = "meta.pt"  # of a distributed checkpoint, a folder: all but the tensors


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, flush to the disk, then rename: a killed run leaves the previous checkpoint intact.

    Lightning's own writer goes through the system's temporary folder, whose rename is a copy on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + PARTIAL_SUFFIX)
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A run's checkpoint, its tensors mapped from the file; of a distributed one all but the tensors. Raises UserError."""
    file = path / METADATA if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"the checkpoint {file} does not exist")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} is not a checkpoint of plain tensors, and nothing else is loaded") from error
    if not isinstance(checkpoint, dict) or (path.is_file() and "state_dict" not in checkpoint):
        raise UserError(f"{path} is not a checkpoint of a training run: it has no state_dict")
    return checkpoint
