"""Reading prompts: a text file, a JSON-lines file with GenEval-style metadata, or the embedded world's own."""

import json
from pathlib import Path

import numpy as np

from rtdmd_lightning.errors import UserError
from rtdmd_lightning.shapes.dataset import sample_metadata
from rtdmd_lightning.shapes.prompts import held_out_prompts

TRAINING_SAMPLE = 8192


def load_prompts(source: str) -> list[dict]:
    """Prompts as metadata dictionaries with at least the key `prompt`.

    `source` is `shapes:train` (a fixed sample of the embedded world's training prompts, tags in its training proportions),
    `shapes:held_out:N` (N held-out prompts of every tag), a `.txt` file with a prompt a line, or a `.jsonl` file with a JSON
    object a line. Raises UserError for a missing, empty or malformed file, naming the line.
    """
    world, _, split = source.partition(":")
    if world == "shapes":
        return _shapes_prompts(source, split)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"the prompt file {source!r} does not exist")
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"the prompt file {source!r} must end in .txt or .jsonl")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt file {source!r} is not UTF-8 text: {error.reason}") from error
    prompts = [_parse_line(path, number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise UserError(f"the prompt file {source!r} is empty")
    return prompts


def _shapes_prompts(source: str, split: str) -> list[dict]:
    if split == "train":
        return sample_metadata(np.random.default_rng(0), TRAINING_SAMPLE)
    name, _, per_tag = split.partition(":")
    if name == "held_out" and per_tag.isdecimal() and int(per_tag) > 0:
        try:
            return held_out_prompts(int(per_tag))
        except ValueError as error:
            raise UserError(f"{source!r}: {error}") from error
    raise UserError(f"unknown prompt source {source!r}; the embedded world has shapes:train and shapes:held_out:N")


def _parse_line(path: Path, number: int, line: str) -> dict:
    if path.suffix == ".txt":
        return {"prompt": line}
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {number} is not JSON: {error.msg}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise UserError(f"{path} line {number} must be an object with a non-empty text under 'prompt'")
    return entry
