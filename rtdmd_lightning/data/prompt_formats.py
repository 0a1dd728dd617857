"""The formats of the published prompt files, beyond those that `prompt_files` reads.

All take the path of a file and return entries that hold at least `prompt`. They raise UserError for content that is not of
their format, naming the line, or the number of the entry.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rtdmd_lightning.data.prompt_files import read_prompt_file
from rtdmd_lightning.rewards.geneval2 import questions
from rtdmd_lightning.rewards.ocr import quoted_text
from rtdmd_lightning.utils.errors import UserError


def from_ocr_text(path: Path) -> list[dict]:
    """A prompt a line, each with the text that is to be legible between double quotes."""
    return _fit_for(path, lambda entry: quoted_text(entry["prompt"]))


def from_geneval2_lines(path: Path) -> list[dict]:
    """A JSON object a line, with the questions that GenEval2 asks about the picture."""
    return _fit_for(path, questions)


def from_drawbench_csv(path: Path) -> list[dict]:
    """A table with the column `Prompts`."""
    entries = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            for row in rows:
                prompt = row.get("Prompts")
                if not prompt or not prompt.strip():
                    raise UserError(f"{path} line {rows.line_num} has nothing in the column Prompts")
                entries.append({"prompt": _one_line(prompt)})
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} after line {rows.line_num} is not CSV in UTF-8: {error}") from error
    return entries


def _fit_for(path: Path, check: Callable[[dict], Any]) -> list[dict]:
    entries = read_prompt_file(path)
    for number, entry in enumerate(entries, start=1):
        try:
            check(entry)
        except UserError as error:
            raise UserError(f"{path} prompt {number}: {error}") from error
    return entries


def _one_line(text: str) -> str:
    """A prompt must not take two lines of a text file."""
    return " ".join(text.split())
