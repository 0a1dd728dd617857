"""Files of prompts from where they are published, each with a checksum.

A file that is on disk already is not asked for again, so one that was put there by hand will do on a machine without a
network. Either way its sha256 must be the known one. Where none is known beforehand, that of the first download is recorded in
`checksums.json` beside the prompts, and the file must stay so from then on.
"""

import hashlib
import http.client
import json
import urllib.request
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import hf_hub_download, hf_hub_url
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import OfflineModeIsEnabled

from rtdmd_lightning.utils.errors import UserError, first_line
from rtdmd_lightning.utils.files import appearing_at, write_text

CHECKSUMS = "checksums.json"
GITHUB = "https://raw.githubusercontent.com"
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class PublishedFile(ABC):
    """One file of a repository.

    Args:
        repository: `OWNER/NAME`.
        path: of the file in it.
        revision: a commit, which cannot change, or a branch.
        sha256: of the content, where it is known.
    """

    repository: str
    path: str
    revision: str = "main"
    sha256: str | None = None

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    @abstractmethod
    def url(self) -> str:
        """What a person would open in a browser to have the file."""

    @abstractmethod
    def download(self) -> bytes:
        """The content. Raises OSError or HTTPException where it cannot be had."""


class HubFile(PublishedFile):
    """A file of a data set on the hub (HF_ENDPOINT says which), through the hub's own cache."""

    @property
    def url(self) -> str:
        return hf_hub_url(self.repository, self.path, repo_type="dataset", revision=self.revision)

    def download(self) -> bytes:
        found = hf_hub_download(self.repository, self.path, repo_type="dataset", revision=self.revision)
        return Path(found).read_bytes()


class GitHubFile(PublishedFile):
    """A file of a repository on GitHub. HF_HUB_OFFLINE forbids this download as well."""

    @property
    def url(self) -> str:
        return f"{GITHUB}/{self.repository}/{self.revision}/{quote(self.path)}"

    def download(self) -> bytes:
        if is_offline_mode():
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        with urllib.request.urlopen(self.url, timeout=TIMEOUT) as response:
            return response.read()


def obtain(file: PublishedFile, name: str, folder: Path) -> Path:
    """A published file of the set NAME on disk: `folder/downloads/NAME/FILE`.

    Raises UserError that names that path where the file cannot be downloaded, and where its checksum is wrong.
    """
    kept = folder / "downloads" / name / file.name
    if kept.is_file():
        _check(kept.read_bytes(), file, kept, folder / CHECKSUMS)
        return kept
    try:
        content = file.download()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{name}: {file.url} cannot be downloaded ({first_line(error)}); fetch it on a machine that can, put it at "
            f"{kept} and run this again"
        ) from error
    _check(content, file, kept, folder / CHECKSUMS)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with appearing_at(kept) as partial:
        partial.write_bytes(content)
    return kept


def _check(content: bytes, file: PublishedFile, kept: Path, checksums: Path) -> None:
    """Raises UserError unless the content has the known checksum, or the recorded one; with neither, records its own."""
    found, known = hashlib.sha256(content).hexdigest(), file.sha256
    recorded = _read(checksums)
    key = str(kept.relative_to(checksums.parent))
    wanted = known or recorded.get(key)
    if wanted is None:
        checksums.parent.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(recorded | {key: found}, indent=2, sort_keys=True) + "\n", checksums)
    elif found != wanted:
        otherwise = "" if known else f"; if a new version is wanted, take its line out of {checksums}"
        raise UserError(
            f"{kept} from {file.url} has the sha256 {found}, not {wanted}: it is damaged or another version; delete it, if it is "
            f"there, and run this again{otherwise}"
        )


def _read(checksums: Path) -> dict[str, str]:
    if not checksums.is_file():
        return {}
    try:
        recorded = json.loads(checksums.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{checksums} is not JSON: {error}") from error
    if not isinstance(recorded, dict):
        raise UserError(f"{checksums} must be an object of file names and their sha256")
    return recorded
