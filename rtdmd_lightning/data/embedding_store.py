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
AXES = {"embeds": 3, "pooled": 2, "guidance": 1}


class EmbeddingStore:
    """The embeddings that one encoder made, in its own folder of a cache.

    Args:
        cache: a folder that encoders of any kind share; it need not exist.
        encoder: all that an embedding depends on besides the prompt, in what JSON can hold.
        like: the conditioning of a prompt in the form that every file must have; by default the first one's.
    """

    def __init__(self, cache: Path, encoder: dict[str, Any], like: Conditioning | None = None) -> None:
        self.description = json.dumps(encoder, indent=2, sort_keys=True)
        self.folder = cache / sha256(self.description.encode()).hexdigest()[:16]
        self._known = None if like is None else _form(like)  # the form of every embedding, since one was seen

    def path(self, prompt: str) -> Path:
        """Where the prompt's embedding is, or would be."""
        name = sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def __contains__(self, prompt: str) -> bool:
        return self.path(prompt).is_file()

    def read(self, prompt: str) -> Conditioning:
        """One prompt's conditioning, bit for bit as it was written, in memory of its own.

        Raises UserError for a damaged file, and for one that is not of the others' shapes and dtypes.
        """
        path = self.path(prompt)
        try:
            with safe_open(path, framework="pt") as file:
                # copies: what the library hands out is mapped from the file
                row = Conditioning(**{name: file.get_tensor(name).clone() for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, TypeError) as error:
            raise _damaged(path, prompt, str(error)) from error
        form = _form(row)
        axes = {name: tensor.ndim for name, tensor in row.tensors().items()}
        if axes != {name: AXES[name] for name in axes} or len(row) != 1 or not _floating(row):
            raise _damaged(path, prompt, f"it holds {form}, which are no embeddings of one prompt")
        self._known = self._known or form
        if form != self._known:
            raise _damaged(path, prompt, f"it holds {form}, not {self._known}")
        return row

    def write(self, prompt: str, conditioning: Conditioning) -> None:
        """Keep one prompt's conditioning, which is on the CPU."""
        self._known = self._known or _form(conditioning)
        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        description = self.folder / DESCRIPTION
        if not description.is_file():
            with appearing_at(description) as partial:
                partial.write_text(self.description, encoding="utf-8")
        with appearing_at(path) as partial:
            save_file(conditioning.tensors(), partial, metadata={"prompt": prompt})


def _form(row: Conditioning) -> str:
    """Shapes and dtypes: `embeds [1, 77, 4096] float32`."""
    parts = [f"{name} {list(tensor.shape)} {str(tensor.dtype)[6:]}" for name, tensor in sorted(row.tensors().items())]
    return ", ".join(parts)


def _floating(row: Conditioning) -> bool:
    return all(tensor.is_floating_point() for tensor in row.tensors().values())


def _damaged(path: Path, prompt: str, why: str) -> UserError:
    return UserError(
        f"the cached embedding {path} of {prompt!r} is damaged ({why}); delete the file, and it is made again"
    )
