"""All commands in one: `rtdmd COMMAND …` is `python -m rtdmd_lightning.COMMAND …`."""

import runpy
import sys
from difflib import get_close_matches

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rtdmd_lightning.fitting.help import HELP, print_help
from rtdmd_lightning.utils.errors import readable_errors
from rtdmd_lightning.utils.option_tables import option_table
from rtdmd_lightning.utils.signatures import introduction

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


OPTIONS = {  # what describes a command's options, where that can be read without importing it
    "evaluate": {"": "evaluate.Evaluation"},
    "sample": {"": "sample.Job"},
    "convert": {"": "convert.convert", "--inspect FILE": "convert.inspect"},
    "embed": {"": "embed.embed"},
    "serve": {"": "serve.serve"},
    "hub": {"push": "hub.push", "pull": "hub.pull"},
    "study": {"": "study.compare"},
    "gradient_noise": {"": "gradient_noise.gradient_noise"},
    "bench": {"": "bench.benchmark", "--gpu": "bench.look", "--counts": "bench.print_counts"},
    "demo": {"": "demo.demo"},
    "pretrain_teacher": {"": "pretrain_teacher.main"},
    "pretrain_clip": {"": "pretrain_clip.main"},
}


def help_of(name: str) -> Group:
    """A command's own introduction and its options."""
    parts: list[Text | Table] = [Text(introduction(f"rtdmd_lightning.{name}"))]
    for way, path in OPTIONS[name].items():
        parts.append(option_table(f"rtdmd {name} {way}".strip(), f"rtdmd_lightning.{path}", ""))
    if name == "evaluate":
        parts.append(Text("\n  --config FILE, and Lightning's --trainer.OPTION; `rtdmd fit --trainer.help` lists them"))
    return Group(*parts)


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
    if name in HELP:
        Console().print(table())
        return
    if any(argument in HELP for argument in sys.argv[2:]):
        if name in OPTIONS:
            Console().print(help_of(name), highlight=False)
            return
        if name == "plan":  # its options are those of `fit`
            Console().print(Text(introduction("rtdmd_lightning.plan")))
            with readable_errors():
                print_help(sys.argv[2:], Console(), "rtdmd plan")
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
