"""`CPSScheduler` as one file for a model repository: it needs torch, diffusers and numpy, and this package not.

It is made of the package's own sources when a result is pushed, so that each formula is written once.
"""

import inspect
import re
from pathlib import Path

from rtdmd_lightning.method import cps, flow
from rtdmd_lightning.sampling import scheduler

SCHEDULER_FOLDER, SCHEDULER_FILE = "scheduler", "scheduling_cps.py"
"""Where it lies in a repository: in the folder of the pipeline's part, as diffusers wants the code of one."""

FORMULAS = (
    flow.at_least_float32,
    flow.broadcast_sigma,
    flow.evenly_spaced,
    flow.shift_sigmas,
    flow.dynamic_shift_sigmas,
    flow.clean_from_velocity,
    flow.noise_from_velocity,
    cps.fresh_noise_share,
    cps.cps_mean_std,
    cps.cps_step,
)
"""What the scheduler calls, and what that calls."""

NOTE = """\
# SPDX-License-Identifier: Apache-2.0
# Written by rtdmd-lightning from its own sources. METHOD is METHOD.md of the repository that this file was published with.
"""

OF_THIS_PACKAGE = re.compile(r"^from rtdmd_lightning\S* import .*$", re.MULTILINE)


def scheduler_text() -> str:
    """The file: the scheduler's own, with the formulas themselves where it imports them."""
    head = inspect.getsource(scheduler).partition("\n\n\nclass ")[0]
    sources = (inspect.getsource(part).rstrip() for part in (*FORMULAS, scheduler.CPSScheduler))
    return NOTE + "\n\n\n".join([OF_THIS_PACKAGE.sub("import math", head), *sources]) + "\n"


def write_scheduler(repository: Path) -> Path:
    """Put the file into the folder of a repository; returns its path."""
    path = repository / SCHEDULER_FOLDER / SCHEDULER_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(scheduler_text(), encoding="utf-8")
    return path
