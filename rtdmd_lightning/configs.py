"""The shipped configs and the toy world's networks, which configs name by paths below the current folder.

    rtdmd configs --copy work && cd work
    rtdmd fit --config configs/cold_start/tiny_sd3.yaml

In a checkout they are there already.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("configs")

import sys
from pathlib import Path

from rtdmd_lightning.utils.command_line import run_command
from rtdmd_lightning.utils.errors import readable_errors
from rtdmd_lightning.utils.files import check_output
from rtdmd_lightning.utils.shipped import copy_shipped, shipped_folder


def configs(copy: Path | None = None) -> None:
    """Print where the shipped files are, or copy them.

    Args:
        copy: the folder that `configs/` and `checkpoints/` (25 MB) are copied into.
    """
    if copy is None:
        print(shipped_folder())
        return
    check_output(copy, "--copy")
    for path in copy_shipped(copy):
        print(f"written: {path}")


if __name__ == "__main__":
    with readable_errors():
        run_command(configs, sys.argv[1:])
