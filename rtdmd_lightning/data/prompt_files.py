"""Prompt files: which formats there are, and which file of a folder is meant."""

from pathlib import Path
from typing import Any

from rtdmd_lightning.utils.errors import UserError, require
from rtdmd_lightning.utils.json_text import parse_json

SUFFIXES = (".txt", ".jsonl", ".json")
OF_A_SPLIT = ("{}_metadata.jsonl", "{}.jsonl", "{}.json", "{}.txt")
WITHOUT_SPLIT = ("metadata.jsonl", "evaluation_metadata.jsonl", "prompts.jsonl", "prompts.json", "prompts.txt")


def usual_names(split: str) -> list[str]:
    """What a split's prompt file may be called, the first that is there wins: metadata says more than a text.

    Without a split (`""`): the training split's names, then those of folders that have no splits (GenEval's among them).
    """
    names = [name.format(split or "train") for name in OF_A_SPLIT]
    return names if split else [*names, *WITHOUT_SPLIT]


def prompt_file_in(folder: Path, split: str = "") -> Path:
    """The prompt file of a folder. Raises UserError for a folder that has none of the usual names."""
    names = usual_names(split)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"the prompt folder {folder} has none of {', '.join(names)}; name the file itself")


def read_prompt_file(path: Path) -> list[dict]:
    """Prompts as metadata dictionaries. Raises UserError for a missing, empty or malformed file, naming the place."""
    if not path.is_file():
        raise UserError(
            f"the prompt file '{path}' does not exist; `rtdmd prompts` (`make prompts`) makes those that the configs name"
        )
    if path.suffix not in SUFFIXES:
        raise UserError(f"the prompt file '{path}' must end in .txt, .jsonl or .json")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt file '{path}' is not UTF-8 text: {error.reason}") from error
    prompts = _parse_list(path, text) if path.suffix == ".json" else _parse_lines(path, text)
    if not prompts:
        raise UserError(f"the prompt file '{path}' is empty")
    return prompts


def _parse_lines(path: Path, text: str) -> list[dict]:
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if path.suffix == ".txt":
        return [{"prompt": line} for _, line in lines]
    return [_checked(f"{path} line {number}", parse_json(line, f"{path} line {number}")) for number, line in lines]


def _parse_list(path: Path, text: str) -> list[dict]:
    """Texts and objects may be mixed."""
    entries = parse_json(text, str(path)) if text.strip() else []
    if not isinstance(entries, list):
        raise UserError(f"{path} must be a list of texts, or of objects with a text under 'prompt'")
    return [
        _checked(f"{path} entry {number}", {"prompt": entry.strip()} if isinstance(entry, str) else entry)
        for number, entry in enumerate(entries, start=1)
    ]


def _checked(place: str, entry: Any) -> dict:
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise UserError(f"{place} must be an object with a non-empty text under 'prompt'")
    require(isinstance(entry.get("tag", ""), str), f"{place}: its 'tag' must be a text, not {entry.get('tag')!r}")
    return entry
