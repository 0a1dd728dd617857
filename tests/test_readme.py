"""What the READMEs tell people to type is understood, and what the first one claims is what was measured."""

import json
import re
import shlex

import pytest

from rtdmd_lightning import fit
from tests.support.tiny import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
CONFIGS = (REPOSITORY / "configs/README.md").read_text()
TABLE = re.compile(r"^\| ablation \| option \|\n\|[-|]+\|\n((?:\|.*\n)+)", flags=re.MULTILINE)
STAGES = ["cold_start", "rtdmd"]  # one table each, in this order
ROWS = [(stage, row) for stage, table in zip(STAGES, TABLE.findall(CONFIGS), strict=True) for row in table.splitlines()]


def typed(text: str) -> list[str]:
    """The arguments in a text's `code`."""
    return [word for code in re.findall(r"`(-[^`]*)`", text) for word in shlex.split(code)]


def test_the_tables_are_found_whole():
    """What is missed here would be checked nowhere."""
    section = CONFIGS.split("## Ablations")[1].split("\n## ")[0]
    assert [row for _, row in ROWS] == [line for line in section.splitlines() if line.startswith("| ") and "`-" in line]


@pytest.mark.parametrize(("stage", "row"), ROWS, ids=[row.split("|")[1].strip() for _, row in ROWS])
def test_every_ablation_of_the_tables_is_an_option_of_its_stage(stage, row, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    fit.parse([f"--config=configs/{stage}/tiny_sd3.yaml", *typed(row)])


TEXTS = [README, CONFIGS]  # others have commands with placeholders
COMMANDS = [found for text in TEXTS for found in re.findall(r"rtdmd(?:_lightning\.| )fit (--config configs.*)", text)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_training_parses(command, monkeypatch):
    """With other prompts, on a CPU's processes."""
    monkeypatch.chdir(REPOSITORY)
    arguments = shlex.split(command.replace("$SLURM_NNODES", "4"), comments=True)
    fit.parse([*arguments, "--data.prompts=shapes:train", "--trainer.accelerator=cpu"])


def test_the_commands_are_found():
    assert len(COMMANDS) >= 12


def test_the_readme_is_read_in_ten_minutes():
    assert len(README.split()) < 1500


def test_every_heading_that_a_link_names_exists():
    """GitHub's anchor of a heading: lower case, hyphens for spaces, no punctuation."""
    for path, heading in re.findall(r"\]\(([\w/.]+\.md)#([^)]+)\)", README):
        headings = re.findall(r"^#+ (.*)$", (REPOSITORY / path).read_text(), flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
        assert heading in anchors, (path, heading)


def test_the_hours_are_those_of_the_measured_seconds():
    """Of one H100, `notebooks/results/h100/bench.json`: a cycle of stage 1; an image of stage 2, 1,152 an epoch."""
    rows = json.loads((REPOSITORY / "notebooks/results/h100/bench.json").read_text())["rows"]
    measured = {(row["check"], row["what"]): row["value"] for row in rows}
    fake, generator, rollout = (
        measured["sd35m", what] for what in ("fake-score update", "generator update", "rollout")
    )  # of 9 images
    assert (
        f"({fake:.2f} s for 9 samples)" in README
        and f"({generator:.2f} s)" in README
        and f"({rollout:.2f} s)" in README
    )
    stage_1 = 1500 * (10 * fake + generator + 3 * rollout) / 3600  # of 9 samples, of 72 in a batch
    image = measured["stage2", "epoch"] / 24  # 3 x 8 images
    assert f"at {image:.2f} s an image" in README
    hours = re.findall(r"^\| stage \d, .* \| (\d+) \|$", README, flags=re.MULTILINE)
    assert [float(number) for number in hours] == [
        round(value) for value in (8 * stage_1, stage_1, 1152 * image * 1000 / 3600, 144 * image * 1000 / 3600)
    ]
