"""Which images an evaluation wants, and under which name each of them lies on the disk.

An image's name holds a digest of all that made it: model, adapters, sampler, seed, prompt and its index. So an image that is
there is the right one, whatever was changed in the config since, and none is drawn twice.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rtdmd_lightning.utils.files import content_digest, digest, slug

Tasks = TypeVar("Tasks", list, range)
UNSEEN_IN_IMAGES = ("embedding_cache", "text_encoders")  # options of a backbone
ONLY_IN_TABLES = ("published",)  # options of an entry


@dataclass(frozen=True)
class ImageTask:
    """One image: its prompt's metadata, its index among the prompt set's images (the noise is a function of it) and its file."""

    index: int
    metadata: dict[str, Any]
    path: Path

    @property
    def prompt(self) -> str:
        return self.metadata["prompt"]


def tasks_of(
    folder: Path, entry: str, entry_digest: str, prompt_sets: Mapping[str, list[dict]]
) -> dict[str, list[ImageTask]]:
    """The images of one entry, by prompt set, in the order of the prompts."""
    return {
        name: [
            ImageTask(index, metadata, folder / slug(entry) / slug(name) / _file_name(entry_digest, index, metadata))
            for index, metadata in enumerate(prompts)
        ]
        for name, prompts in prompt_sets.items()
    }


def in_batches(tasks: Tasks, batch_size: int) -> list[Tasks]:
    """Cut once, whatever the number of processes: an image's last bits depend on the batch that it is computed in."""
    return [tasks[start : start + batch_size] for start in range(0, len(tasks), batch_size)]


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Digest of an entry as it stands in the config, with the contents of every file and folder that it names."""
    settings = _without(settings, (*UNSEEN_IN_IMAGES, *ONLY_IN_TABLES))
    contents = {text: content_digest(Path(text)) for text in _texts(settings) if Path(text).exists()}
    return digest(json.dumps([settings, contents], sort_keys=True).encode())


def _file_name(entry_digest: str, index: int, metadata: dict[str, Any]) -> str:
    made_of = f"{entry_digest}/{index}/{metadata['prompt']}"
    return f"{index:05d}-{digest(made_of.encode())}.png"


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(entry, keys) for key, entry in value.items() if key not in keys}
    return value


def _texts(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return set().union(*map(_texts, value.values()))
    if isinstance(value, list):
        return set().union(*map(_texts, value))
    return {value} if isinstance(value, str) and value else set()
