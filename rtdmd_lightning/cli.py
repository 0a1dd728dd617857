"""All commands in one: `rtdmd COMMAND …` is `python -m rtdmd_lightning.COMMAND …`."""

import runpy
import sys
from difflib import get_close_matches

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
    lines = Table.grid(padding=(0, 2))
    lines.title, lines.title_justify, lines.title_style = "rtdmd COMMAND [--OPTION=VALUE …]", "left", "bold"
    for name, meaning in COMMANDS.items():
        lines.add_row(f"  [cyan]{name}[/]", meaning)
    lines.caption, lines.caption_justify = "rtdmd COMMAND --help lists its options", "left"
    return lines


def main() -> None:
    """Run the command that the first argument names, as a module of its own."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        Console().print(table())
        return
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv = sys.argv[1:]
    runpy.run_module(f"rtdmd_lightning.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
