"""A diffusers folder or hub id before its weights are read: which parts it has, and their configs."""

import json
from pathlib import Path
from typing import Any

from rtdmd_lightning.utils.errors import UserError, first_line


def check_folder(pretrained: str, parts: list[str]) -> None:
    """Raises UserError for what is neither a hub id nor a diffusers folder with these parts."""
    folder = Path(pretrained)
    if not folder.is_dir():
        if pretrained.startswith(("/", ".")) or pretrained.count("/") != 1:
            raise UserError(f"the base model folder {folder} does not exist")
        return  # a hub id
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"the base model folder {folder} has no model_index.json; it should be a diffusers pipeline")
    listed = _read_index(index)
    missing = [part for part in parts if part not in listed or not (folder / part).is_dir()]
    if missing:
        raise UserError(f"the base model folder {folder} lacks {', '.join(missing)}")


def _read_index(path: Path) -> dict[str, Any]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(listed, dict):
        raise UserError(f"{path} must be a mapping of a pipeline's parts, as diffusers writes it")
    return listed


def fetch(pipeline_class: Any, pretrained: str, given: dict[str, Any]) -> None:
    """Have a hub id's files in the hub's cache, without those of the given parts; a folder has its files. Raises UserError."""
    if Path(pretrained).is_dir():
        return
    try:
        pipeline_class.download(pretrained, **given)
    except OSError as error:
        raise UserError(f"cannot load the base model {pretrained!r}: {first_line(error)}") from error


def read_config(reader: Any, pretrained: str, part: str | None = None) -> dict[str, Any]:
    """What a class of diffusers reads of a part's config, or of the pipeline's without one. Raises UserError."""
    try:
        return reader.load_config(pretrained, subfolder=part)
    except OSError as error:
        what = f"the base model {pretrained!r}" if part is None else f"the {part} of the base model {pretrained!r}"
        raise UserError(f"cannot read the config of {what}: {first_line(error)}") from error


def unrepresentable(pretrained: str, resolution: int, multiple: int, rule: str) -> UserError:
    """Of images of a size that a pipeline has no latents for."""
    return UserError(
        f"resolution {resolution} cannot be represented by {pretrained}: it must be a positive multiple of {multiple} ({rule})"
    )
