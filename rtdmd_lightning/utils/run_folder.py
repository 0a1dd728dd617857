"""A run's folder. It is the project's own, whatever loggers a run has: checkpoints, evaluations, images and result are in it."""

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from rtdmd_lightning.utils.checkpointing import PARTIAL_SUFFIX
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.files import PARTIAL_PREFIX

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems that know none


def run_folder(trainer: Trainer) -> Path:
    """Where a run writes: the option `run_dir`, which is the trainer's `default_root_dir`."""
    return Path(trainer.default_root_dir)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While the body runs, no other process has this folder. Raises UserError where one has it already.

    The system holds the lock for the process, so that a killed one leaves none behind; the empty file stays. Where the file
    system knows no locks, that is told, and the body runs without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"a run is being trained in {folder}: wait for it, or give this one another --run_dir"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            rank_zero_warn(
                f"the file system of {folder} knows no locks: a second run in this folder will not be refused"
            )
        yield


def remove_partial(folder: Path) -> None:
    """Remove what a killed run was writing. Call it with the folder locked."""
    for path in [*folder.rglob(f"{PARTIAL_PREFIX}*"), *folder.rglob(f"*{PARTIAL_SUFFIX}")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have lain in such a folder
