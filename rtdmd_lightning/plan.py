"""What a run will need of memory: `python -m rtdmd_lightning.plan --config X [--trainer.devices N --model.…] [--markdown]`.

Takes the options of `rtdmd_lightning.fit`, and needs no weights, prompts or GPU: the run's own module executes one rollout, one
fake-score step and one generator step on fake tensors (`rtdmd_lightning/planning`), with one and with two transformer blocks of
each kind, from which all blocks follow. Published models are known by the committed facts; other pipelines are read from their
folder. Not counted are the GPU's context, workspaces inside kernels, fragmentation, evaluations with their held-out rewards, and
the passes of text encoders and of rewards without gradient. On the toy world the peak is within 15% of what is measured
(`tests/planning/test_prediction.py`).
"""

import logging
import sys
import warnings
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from rtdmd_lightning import fit
from rtdmd_lightning.data.stream import samples_per_process
from rtdmd_lightning.fitting.help import HELP, print_help
from rtdmd_lightning.planning import tables
from rtdmd_lightning.planning.estimate import four_copies, one_base, sharded
from rtdmd_lightning.planning.trace import trace
from rtdmd_lightning.utils.command_line import wide_console
from rtdmd_lightning.utils.errors import readable_errors

MARKDOWN = "--markdown"
# A plan needs no prompts, and no GPUs: as many processes of a CPU are described, none is started.
ANYWHERE = ["--data.prompts=shapes:train", "--trainer.accelerator=cpu", "--trainer.logger=false"]


def plan(arguments: list[str]) -> tuple[tables.Columns, int]:
    """The estimates of a run, by what they are of, and its number of processes.

    Raises UserError for a config without shapes that are known, or a batch that does not divide by the processes.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    run = fit.parse([*arguments, *ANYWHERE])
    processes = run.trainer.world_size
    samples_per_process(run.model.batch_size, processes)  # told before the trace, which takes a minute
    traced = trace(run.model, run.trainer)
    return {
        tables.DDP: one_base(traced, processes, checkpointing=True),
        tables.UNCHECKPOINTED: one_base(traced, processes, checkpointing=False),
        tables.FSDP2: sharded(traced, processes, checkpointing=True),
        tables.COPIES: four_copies(traced, processes, checkpointing=True),
    }, processes


def main(arguments: list[str]) -> None:
    """Print the table of a run; with `--markdown` among the arguments, one row of Markdown below its header."""
    options = [argument for argument in arguments if argument != MARKDOWN]
    if any(argument in HELP for argument in options):
        print_help(options, Console(), "rtdmd plan")
        return
    with Console(stderr=True).status("tracing the run's updates on fake tensors: about a minute"):
        columns, processes = plan(options)
    title = _title(options)
    if len(options) < len(arguments):
        print(tables.markdown(title, columns, processes))
    else:
        wide_console().print(tables.terminal(title, columns, processes))


def _title(options: list[str]) -> str:
    """The last config's folder and name."""
    configs = [value for option, value in pairwise(options) if option in ("--config", "-c")]
    configs += [option.partition("=")[2] for option in options if option.startswith("--config=")]
    return "/".join(Path(configs[-1]).with_suffix("").parts[-2:]) if configs else "run"


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
