"""Checkpoints that are either whole or absent, and read without running what a file may hold."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.files import writing

CHECKPOINTS, LAST = "checkpoints", "last.ckpt"  # where a run keeps them, and the one to go on from
PARTIAL_SUFFIX = ".partial"  # of a file that is being written
METADATA = "meta.pt"  # of a distributed checkpoint, a folder: all but the tensors


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, flush to the disk, then rename: a killed run leaves the previous checkpoint intact.

    Lightning's own writer goes through the system's temporary folder, whose rename is a copy on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        partial = target.with_name(target.name + PARTIAL_SUFFIX)
        try:
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)  # of a full disk, half a file is no use


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A run's checkpoint, its tensors mapped from the file; of a distributed one all but the tensors. Raises UserError."""
    file = path / METADATA if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"the checkpoint {file} does not exist")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # what the unpickler raises depends on the bytes
        raise UserError(f"{path} is not a checkpoint of plain tensors, and nothing else is loaded") from error
    if not isinstance(checkpoint, dict) or (path.is_file() and "state_dict" not in checkpoint):
        raise UserError(f"{path} is not a checkpoint of a training run: it has no state_dict")
    return checkpoint
