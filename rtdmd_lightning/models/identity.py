"""Telling whether two pretrained models are the same one, without reading all of it."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download

from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.files import content_digest, digest


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


def weights_digest(pretrained: str, part: str) -> str:
    """What the weights of a part are told by: the names, sizes and both ends of its files, wherever they lie.

    The same for a folder and for the hub's copy of it. A hub id's files are fetched where the cache lacks them: whoever asks is
    about to load them. Raises UserError for a hub id that is neither in the hub's cache nor within reach.
    """
    folder = Path(pretrained)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(pretrained, allow_patterns=f"{part}/*"))
        except OSError as error:
            raise UserError(f"cannot read the {part} of the base model {pretrained!r}: {error}") from error
    files = sorted((folder / part).glob("*.safetensors")) or sorted((folder / part).glob("*.bin"))
    return digest("".join(f"{file.name} {content_digest(file)}\n" for file in files).encode())
