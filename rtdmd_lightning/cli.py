"""All commands in one: `rtdmd COMMAND …` is `python -m rtdmd_lightning.COMMAND …`."""

import runpy
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rtdmd_lightning.fitting.help import HELP, print_help
from rtdmd_lightning.fitting.refusals import did_you_mean
from rtdmd_lightning.utils.errors import UserError, readable_errors
from rtdmd_lightning.utils.option_tables import option_table, plain_table
from rtdmd_lightning.utils.signatures import introduction, signature

COMMANDS = {
    "fit": "train: stage 1, stage 2 and whatever else a config names",
    "evaluate": "compare models on prompt sets: table, pictures, report",
    "sample": "draw images from prompts",
    "app": "draw side by side in a browser: teacher, stage 1, stage 2",
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
    "configs": "copy the shipped configs and the toy world's networks",
    "completion": "print the script with which a shell completes commands and options",
    "pretrain_teacher": "train the toy world's teacher again",
    "pretrain_clip": "train the toy world's CLIP again",
}

# What describes the options of a command, by how it is called: classes and functions, which are read and not imported. `fit` and
# `plan` have those of the classes that a config names.
OPTIONS = {
    "evaluate": {"": "evaluate.Evaluation"},
    "sample": {"": "sample.Job"},
    "app": {"": "app.app"},
    "convert": {"": "convert.convert", "--inspect FILE": "convert.inspect"},
    "prompts": {"NAME …": "prompts.prompts"},
    "embed": {"": "embed.embed"},
    "doctor": {"NAME …": "doctor.doctor"},
    "serve": {"": "serve.serve"},
    "hub": {"push": "hub.push", "pull": "hub.pull"},
    "study": {"": "study.compare"},
    "gradient_noise": {"": "gradient_noise.gradient_noise"},
    "bench": {"": "bench.benchmark", "--gpu": "bench.look", "--counts": "bench.print_counts"},
    "demo": {"": "demo.demo"},
    "configs": {"": "configs.configs"},
    "completion": {"bash|zsh": "completion.completion"},
    "pretrain_teacher": {"": "pretrain_teacher.main"},
    "pretrain_clip": {"": "pretrain_clip.main"},
}
MORE_OPTIONS = {
    "evaluate": {
        "--config FILE": "YAML files, merged",
        "--entries.NAME.OPTION": "of an entry: backbone, adapters, steps, guidance_scale, eta, seed, published",
        "--resolution": "pixels a side, in place of every backbone's own",
        "--float32_matmul_precision": "of float32 matrix products on an accelerator: high (TF32), highest, medium",
        "--trainer.OPTION": "Lightning's; `rtdmd fit --trainer.help` lists them",
        "--print_config": "the whole configuration",
    },
    "plan": {
        "--card GB": "the cheapest switches with which the run fits one card of that size (with --markdown also 12,16,24)",
        "--markdown": "a row of Markdown in place of the table",
    },
}
POSITIONAL = {"names": "NAME …", "shell": "bash|zsh"}


def print_help_of(name: str, arguments: list[str], console: Console) -> None:
    """A command's own introduction and its options; of a run's config among the arguments, those of its classes too."""
    if name != "fit":  # its help has no need of an introduction
        console.print(Text(introduction(f"rtdmd_lightning.{name}")))
    if name not in OPTIONS:
        print_help(arguments, console, f"rtdmd {name}")
    for way, path in OPTIONS.get(name, {}).items():
        title = f"rtdmd {name} {way}".strip()
        console.print(option_table(title, f"rtdmd_lightning.{path}", positional=POSITIONAL), highlight=False)
    if name in MORE_OPTIONS:
        console.print(plain_table("More", MORE_OPTIONS[name]), highlight=False)


def check_names(name: str, arguments: list[str]) -> None:
    """Refuse options that a command does not have, with the nearest that it has. `fit` and `plan` check theirs themselves."""
    ways = OPTIONS.get(name, {})
    words = [word.partition(" ")[0] for word in (*ways, *MORE_OPTIONS.get(name, {}))]
    known = [word.removeprefix("--").partition(".")[0] for word in words if word.startswith("--")]
    for path in ways.values():
        described = signature(f"rtdmd_lightning.{path}")
        assert described is not None
        known += [option for option in described.options if option not in POSITIONAL]
    for argument in arguments if ways else ():
        option = argument.removeprefix("--").partition("=")[0].partition(".")[0]
        if argument.startswith("--") and option not in known:
            nearest = did_you_mean(option, known, "--", f"rtdmd {name} --help")
            raise UserError(f"{argument}: `rtdmd {name}` has no such option; {nearest}")


def before_imports(name: str) -> None:
    """What needs none of the libraries that a command imports: its help, and the refusal of a mistyped option. Both end here."""
    arguments = sys.argv[1:]
    with readable_errors():
        if any(argument in HELP for argument in arguments):
            print_help_of(name, arguments, Console())
            sys.exit(0)
        check_names(name, arguments)


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
    if name not in COMMANDS:
        hint = did_you_mean(name, list(COMMANDS), listed_by="rtdmd --help")
        print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv = sys.argv[1:]
    runpy.run_module(f"rtdmd_lightning.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
