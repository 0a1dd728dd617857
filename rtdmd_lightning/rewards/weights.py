"""Where a scorer's weights are: named by the user, kept in a folder of all rewards, or published on the hub."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

from rtdmd_lightning.utils.errors import UserError, first_line
from rtdmd_lightning.utils.quiet import without_loading_bars

CACHE_VARIABLE = "RTDMD_REWARD_CACHE"


def locate(reward: str, published: str, weights: str | None = None, filename: str | None = None) -> str:
    """What to load a reward's weights from: a folder or a hub id, or with `filename` that one file on disk.

    The first that applies: `weights` as the user gave it; `$RTDMD_REWARD_CACHE/REWARD` (with `filename`, that file in it)
    where it exists; the published hub id, from which `filename` is downloaded unless the hub's own cache has it.

    Args:
        reward: name of the reward, and of its folder in the cache.
        published: hub id of the published weights.
        weights: folder, file or hub id from the configuration.
        filename: the one file that is wanted, for weights that are not a whole `from_pretrained` folder.

    Raises UserError for a path that does not exist, and for a file that cannot be downloaded.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if path.exists():
            return str(_file_in(path, reward, filename))
        if _looks_like_a_path(weights):
            raise UserError(f"{reward}: the weights {weights} do not exist; give a folder, a file or a hub id")
        return _from_hub(reward, weights, filename)
    if CACHE_VARIABLE in os.environ:
        cached = Path(os.environ[CACHE_VARIABLE]).expanduser() / reward / (filename or "")
        if cached.exists():
            return str(cached)
    return _from_hub(reward, published, filename)


@dataclass(frozen=True)
class Source:
    """One of the things that a reward loads, by the arguments of `locate`."""

    reward: str
    published: str
    weights: str | None = None
    filename: str | None = None

    def locate(self) -> str:
        return locate(self.reward, self.published, self.weights, self.filename)

    def on_disk(self) -> str:
        """Its file or folder. Of a folder in the hub's cache only loading tells whether all is there.

        Raises UserError with the command that fetches it. Only a single file may be downloaded, where the hub is not offline.
        """
        located = self.locate()
        if Path(located).exists():
            return located
        with loading(self.reward, located):
            # No file is asked for: models are loaded from a part of what their repositories hold.
            return snapshot_download(located, local_files_only=True, allow_patterns=[])


@contextlib.contextmanager
def loading(reward: str, source: str) -> Iterator[None]:
    """Around `from_pretrained(source)`: tells what failed, and how to fetch a hub id, in one `UserError`."""
    try:
        with without_loading_bars():
            yield
    except OSError as error:
        raise _cannot_load(reward, source, None, error) from error


def fetch_command(published: str, filename: str | None = None) -> str:
    """The command that puts a hub id, or one file of it, into the hub's own cache."""
    return f"hf download {published}" + (f" {filename}" if filename else "")


def _file_in(path: Path, reward: str, filename: str | None) -> Path:
    if filename is None or path.is_file():
        return path
    if not (path / filename).is_file():
        raise UserError(f"{reward}: the weights folder {path} has no file {filename}")
    return path / filename


def _from_hub(reward: str, hub_id: str, filename: str | None) -> str:
    if filename is None:
        return hub_id
    try:
        return hf_hub_download(hub_id, filename)
    except OSError as error:  # what the hub raises for no network, no such repository and no such file alike
        raise _cannot_load(reward, hub_id, filename, error) from error


def _looks_like_a_path(weights: str) -> bool:
    """A hub id is `name` or `owner/name`, and no file."""
    return weights.startswith(("/", ".", "~")) or weights.count("/") > 1 or bool(Path(weights).suffix in _FILE_SUFFIXES)


_FILE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def _cannot_load(reward: str, source: str, filename: str | None, error: OSError) -> UserError:
    if Path(source).exists():
        return UserError(f"{reward}: cannot load the weights {source}: {error}")
    return UserError(
        f"{reward}: the weights {source} are neither on disk nor in the hub's cache; fetch them while online with "
        f"`{fetch_command(source, filename)}`, or put them into ${CACHE_VARIABLE}/{reward} ({first_line(error)})"
    )
