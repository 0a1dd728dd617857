"""All commands in one: `python -m rtdmd_lightning.cli COMMAND …` is `python -m rtdmd_lightning.COMMAND …`."""

import runpy
import sys

from rich.console import Console
from rich.table import Table

COMMANDS = {
    "fit": "train: stage 1, stage 2 and whatever else a config names",
    "evaluate": "compare models on prompt sets: table, pictures, report",
    "sample": "draw images from prompts",
    "convert": "put an adapter into another format, or inspect its file",
    "prompts": "make or fetch the prompt sets that the configs name",
    "embed": "encode a run's prompts ahead of training",
    "plan": "predict the memory of a run, without weights or GPU",
    "doctor": "tell which rewards work here",
    "serve": "offer a reward to other processes over HTTP",
    "hub": "push a result to the hub, or pull one",
    "study": "train variants of a run and compare them",
    "gradient_noise": "measure how noisy each term's gradient is",
    "bench": "time a run and count its memory",
    "demo": "run both stages on the toy world in minutes",
    "pretrain_teacher": "train the toy world's teacher again",
    "pretrain_clip": "train the toy world's CLIP again",
}


def table() -> Table:
    """The commands, a line each."""
    lines = Table("command", "what it does", title="rtdmd COMMAND --help tells more")
    for name, meaning in COMMANDS.items():
        lines.add_row(name, meaning)
    return lines


def main() -> None:
    """Run the command that the first argument names, as a module of its own."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        Console().print(table())
        return
    if name not in COMMANDS:
        sys.exit(f"error: there is no command {name!r}; the commands are {', '.join(COMMANDS)}")
    sys.argv = sys.argv[1:]
    runpy.run_module(f"rtdmd_lightning.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
