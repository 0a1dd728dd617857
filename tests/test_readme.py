"""The options that the README tells people to type are options."""

import re
import shlex

import pytest

from rtdmd_lightning import fit
from tests.support.tiny import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
TABLE = re.compile(r"^\| ablation \| option \|\n\|[-|]+\|\n((?:\|.*\n)+)", flags=re.MULTILINE)
STAGES = ["cold_start", "rtdmd"]  # one table each, in this order
ROWS = [(stage, row) for stage, table in zip(STAGES, TABLE.findall(README), strict=True) for row in table.splitlines()]


def typed(text: str) -> list[str]:
    """The arguments in a text's `code`."""
    return [word for code in re.findall(r"`(-[^`]*)`", text) for word in shlex.split(code)]


def test_the_tables_are_found_whole():
    """What is missed here would be checked nowhere."""
    section = README.split("## Train")[1].split("\n## ")[0]
    assert [row for _, row in ROWS] == [line for line in section.splitlines() if line.startswith("| ") and "`-" in line]


@pytest.mark.parametrize(("stage", "row"), ROWS, ids=[row.split("|")[1].strip() for _, row in ROWS])
def test_every_ablation_of_the_tables_is_an_option_of_its_stage(stage, row, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    fit.parse([f"--config=configs/{stage}/tiny_sd3.yaml", *typed(row)])


COMMANDS = re.findall(r"-m rtdmd_lightning\.fit (--config .*)", README)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_training_parses(command, monkeypatch):
    """With other prompts, on a CPU's processes."""
    monkeypatch.chdir(REPOSITORY)
    arguments = shlex.split(command.replace("$SLURM_NNODES", "4"), comments=True)
    fit.parse([*arguments, "--data.prompts=shapes:train", "--trainer.accelerator=cpu"])


def test_the_commands_are_found():
    assert len(COMMANDS) >= 8
