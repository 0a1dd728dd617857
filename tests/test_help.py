"""`rtdmd` and `rtdmd COMMAND --help`: what they list is what the commands take, and no help waits for libraries."""

import importlib
import inspect
import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from rtdmd_lightning import cli
from rtdmd_lightning.utils.option_tables import option_table
from rtdmd_lightning.utils.signatures import signature
from tests.support.tiny import REPOSITORY

HEAVY = (
    "torch",
    "torchvision",
    "torchmetrics",
    "lightning",
    "diffusers",
    "transformers",
    "peft",
    "scipy",
    "matplotlib",
)
WAYS = [path for ways in cli.OPTIONS.values() for path in ways.values()]


def called(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["rtdmd", *arguments])
    cli.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed_a_line_each(monkeypatch, capsys, arguments):
    lines = called(monkeypatch, capsys, *arguments).splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert listed == list(cli.COMMANDS)


def test_a_mistyped_command_is_told_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rtdmd", "evalute"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2 and "did you mean evaluate?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["sample", "--promt", "a"], "--prompt"),
        (["sample", "--adapter=a.pt"], "--adapters"),
        (["evaluate", "--resolutoin=512"], "--resolution"),
        (["hub", "push", "--repo=a/b"], "--repo_id"),
        (["bench", "--gpu", "--minuts=3"], "--minutes"),
        (["doctor", "ocr", "--devise", "cpu"], "--device"),
    ],
)
def test_a_mistyped_option_of_any_command_is_told_the_nearest(monkeypatch, capsys, arguments, nearest):
    with pytest.raises(SystemExit) as exit_:
        called(monkeypatch, capsys, *arguments)
    error = capsys.readouterr().err
    (typed,) = (argument for argument in arguments[1:] if argument.startswith("--") and argument != "--gpu")
    assert exit_.value.code == 2
    assert f"{typed}: `rtdmd {arguments[0]}`" in error and f"did you mean {nearest}?" in error


def test_options_of_options_and_of_lightning_are_left_to_the_command():
    cli.check_names("sample", ["--backbone.use_t5=false", "--steps", "4", "-1"])
    cli.check_names(
        "evaluate", ["--config", "a.yaml", "--entries.RTDMD.steps=8", "--trainer.devices=2", "--print_config"]
    )
    cli.check_names("fit", ["--model.whatever=1"])


@pytest.mark.parametrize("path", WAYS)
def test_the_options_that_are_listed_are_those_of_the_command(path):
    module, _, name = path.rpartition(".")
    described = getattr(importlib.import_module(f"rtdmd_lightning.{module}"), name)
    known = signature(f"rtdmd_lightning.{path}").options
    assert list(known) == list(inspect.signature(described).parameters)
    assert [option.name for option in known.values() if not option.meaning] == []


def test_every_command_has_a_help():
    assert {*cli.OPTIONS, "fit", "plan"} == set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_commands_help_fits_a_terminal_and_names_its_options(monkeypatch, capsys, name):
    with pytest.raises(SystemExit) as exit_:
        called(monkeypatch, capsys, name, "--help")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for path in cli.OPTIONS.get(name, {}).values():
        for option in signature(f"rtdmd_lightning.{path}").options:
            assert cli.POSITIONAL.get(option, f"--{option}") in text


def test_a_default_is_shown_as_one_would_type_it():
    console = Console(width=100, file=io.StringIO())
    console.print(option_table("", "rtdmd_lightning.evaluate.Evaluation"))
    console.print(option_table("", "rtdmd_lightning.sample.Job"))
    text = console.file.getvalue()
    for name, default in {
        "output": "required",
        "gallery": "optional",
        "adapters": "default: []",
        "prompts": "default: null",
        "eta": "default: 0.9",
        "schedule": "default: even",
    }.items():
        assert re.search(rf"--{name} [^(]*(\([^(]*)*{re.escape(f'({default})')}", text), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["ftt"], 2),
        *(([name, "--help"], 0) for name in cli.COMMANDS),
        (["fit", "--config", "configs/rtdmd/tiny_sd3.yaml", "--help"], 0),
        (["fit", "--config", "configs/rtdmd/tiny_sd3.yaml", "--model.batch_sise=3"], 2),
        (["fit", "--config", "configs/rtdmd/tiny_sd3.yaml", "--model.batch_size=three"], 2),
        (["fit", "--config", "configs/rtdmd/tiny_sd3.yaml", "--trainer.max_step=3"], 2),
        (["fit", "--config", "configs/rtdmd/tiny_sd3.yaml", "--data.prompts=nowhere.txt"], 2),
        (["fit"], 2),
        (["sample", "--promt", "a"], 2),
    ],
)
def test_neither_a_help_nor_a_wrong_option_waits_for_libraries(arguments, status):
    script = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('imported:', [name for name in {HEAVY!r} if name in sys.modules]))\n"
        f"sys.argv = ['rtdmd', *{arguments!r}]\n"
        "from rtdmd_lightning.cli import main\n"
        "main()\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    assert finished.returncode == status, finished.stderr
    assert finished.stdout.endswith("imported: []\n")
