"""`bench --gpu`: this project's numbers on the machine's accelerator, in minutes, without weights and without network."""

from pathlib import Path

import torch

from rtdmd_lightning.benchmarking.checks import CHECKS
from rtdmd_lightning.benchmarking.conductor import Conductor
from rtdmd_lightning.benchmarking.predictions import compared
from rtdmd_lightning.benchmarking.report import Report
from rtdmd_lightning.utils.errors import UserError


def look(
    minutes: float = 9.0,
    only: str | None = None,
    small: bool = False,
    device: str | None = None,
    output: Path = Path("runs/gpu_bench.json"),
) -> None:
    """Measure this project on an accelerator: speed, memory, and whether its numbers are right.

    Networks have the published shapes and random weights. Every row is printed and written at once; it ends by itself.

    Args:
        minutes: for all checks together; those that do not fit are not begun.
        only: names of checks with commas between them, instead of all.
        small: tiny shapes, by which nothing is judged: to try the command, on a CPU too.
        device: of torch; by default the machine's accelerator.
        output: the JSON file; a log (.log), a Markdown table (.md) and a profile (.profile.txt) lie beside it.
    """
    names = [check.name for check in CHECKS]
    wanted = names if only is None else [name.strip() for name in only.split(",")]
    if unknown := sorted(set(wanted) - set(names)):
        raise UserError(f"--only {', '.join(unknown)}: there is no such check; there are {', '.join(names)}")
    chosen = [check for check in CHECKS if check.name in wanted or check.if_failed in wanted]
    shortest = min(check.least for check in chosen)
    if 60 * minutes < shortest:
        raise UserError(f"--minutes {minutes} is too short for anything: the shortest check wants {shortest / 60:.1f}")
    where = the_device(device, small)
    about = {"minutes": minutes, "device": str(where), "small": small, "torch": torch.__version__}
    report = Report(output, about)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".log").write_text("")
    try:
        Conductor(report, where, small, 60 * minutes).play(chosen)
        for row in compared(report):
            report.add(row)
    finally:
        output.with_suffix(".md").write_text(report.table())
        print(f"{len(report.rows)} rows: {output}")
    for row in report.rows:
        if row.good is False:
            print(f"  {row}")


def the_device(wanted: str | None, small: bool) -> torch.device:
    """The one to measure. Raises UserError where there is no accelerator and tiny shapes were not asked for."""
    present = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device(wanted) if wanted else present or torch.device("cpu")
    if device.type == "cpu":
        if not small:
            raise UserError("there is no accelerator here; --small true tries the command with tiny shapes on the CPU")
        return device
    return torch.device(device.type, device.index or 0)
