"""Telling whether two pretrained models are the same one, without reading all of it."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.files import content_digest


def identity(pretrained: str, parts: list[str]) -> dict[str, Any]:
    """What some parts (subfolders) of a diffusers folder or hub id can be told by.

    A folder by its contents, wherever it lies; a hub id by the commit that is (or would be) loaded. Raises UserError for a hub
    id that is neither in the hub's cache nor within reach.
    """
    folder = Path(pretrained)
    if folder.is_dir():
        return {part: content_digest(folder / part) for part in parts}
    try:
        index = hf_hub_download(pretrained, "model_index.json")
    except OSError as error:  # what the hub raises for no network, no such repository and no such file alike
        raise UserError(f"cannot tell the version of the base model {pretrained!r}: {error}") from error
    return {"hub": pretrained, "commit": Path(index).parent.name, "parts": parts}
