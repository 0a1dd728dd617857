"""Prompt embeddings on disk, one safetensors file a prompt:

    CACHE/ENCODER/encoder.json          what ENCODER is a digest of
    CACHE/ENCODER/4f/4f53….safetensors  a prompt's, named by the SHA-256 of its text

A file is whole or absent, so that any number of processes may read and fill a cache at once; whoever comes last wins, with
an embedding that is as good.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.files import appearing_at

DESCRIPTION = "encoder.json"


class EmbeddingStore:
    """The embeddings that one encoder made, in its own folder of a cache.

    Args:
        cache: a folder that encoders of any kind share; it need not exist.
        encoder: all that an embedding depends on besides the prompt, in what JSON can hold.
    """

    def __init__(self, cache: Path, encoder: dict[str, Any]) -> None:
        self.description = json.dumps(encoder, indent=2, sort_keys=True)
        self.folder = cache / sha256(self.description.encode()).hexdigest()[:16]

    def path(self, prompt: str) -> Path:
        """Where the prompt's embedding is, or would be."""
        name = sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def __contains__(self, prompt: str) -> bool:
        return self.path(prompt).is_file()

    def read(self, prompt: str) -> Conditioning:
        """One prompt's conditioning, bit for bit as it was written, in memory of its own. Raises UserError for a damaged file."""
        path = self.path(prompt)
        try:
            with safe_open(path, framework="pt") as file:
                # copies: what the library hands out is mapped from the file
                return Conditioning(**{name: file.get_tensor(name).clone() for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, TypeError) as error:
            raise UserError(
                f"the cached embedding {path} of {prompt!r} is damaged ({error}); delete the file, and it is made again"
            ) from error

    def write(self, prompt: str, conditioning: Conditioning) -> None:
        """Keep one prompt's conditioning, which is on the CPU."""
        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        description = self.folder / DESCRIPTION
        if not description.is_file():
            with appearing_at(description) as partial:
                partial.write_text(self.description, encoding="utf-8")
        with appearing_at(path) as partial:
            save_file(conditioning.tensors(), partial, metadata={"prompt": prompt})
