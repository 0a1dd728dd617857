"""Where the configs and the toy world's networks are: beside the package in a checkout, inside of it where it was installed.

`setup.py` puts them into a wheel.
"""

import shutil
from pathlib import Path

from rtdmd_lightning.utils.errors import require

CONFIGS, CHECKPOINTS = "configs", "checkpoints"
PACKAGE = Path(__file__).parents[1]


def shipped_folder() -> Path:
    """The folder with `configs/` and `checkpoints/`."""
    installed = PACKAGE / "shipped"
    return installed if installed.is_dir() else PACKAGE.parent


def copy_shipped(folder: Path) -> list[Path]:
    """Copy both into a folder, where their paths fit together. Raises UserError where one of them is there already."""
    copies = [folder / name for name in (CONFIGS, CHECKPOINTS)]
    for copy in copies:
        require(not copy.exists(), f"{copy} is there already; name another folder, or remove it")
    for copy in copies:
        shutil.copytree(shipped_folder() / copy.name, copy)
    return copies
