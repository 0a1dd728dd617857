"""Prompt embeddings, computed once per prompt: kept in memory, and on disk where the backbone has an embedding cache."""

from functools import partial
from pathlib import Path

import torch

from rtdmd_lightning.data.embedding_store import EmbeddingStore
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.prompt_memory import PromptMemory
from rtdmd_lightning.utils.transfer import send

MEBIBYTE, GIBIBYTE = 2**20, 2**30
FILL = "rtdmd embed"


class PromptEmbedder:
    """Prompts to conditioning: from the device's memory, else from the CPU's, else from disk, else by the text encoders.

    Args:
        backbone: a loaded backbone. Its text encoders see each prompt once while that stays in memory; once for ever with an
            `embedding_cache`. What it says of `embeddings_on_device` is kept there, so that a prompt that is used again (in
            stage 2 by all phases of an epoch) is not copied again.
        capacity: bytes of embeddings that are kept in memory, on the CPU. A prompt of SD3 or FLUX takes 2 to 13 MB.
    """

    def __init__(self, backbone: Backbone, capacity: int = 2 * GIBIBYTE) -> None:
        self.backbone = backbone
        self._memory: PromptMemory[Conditioning] = PromptMemory(capacity, size=_bytes)
        self._on_device: dict[torch.device, PromptMemory[Conditioning]] = {}
        self.store: EmbeddingStore | None = None
        if backbone.embedding_cache is not None:
            like = backbone.blank_conditioning(1)
            self.store = EmbeddingStore(Path(backbone.embedding_cache), backbone.encoder_identity(), like)

    def __call__(self, prompts: list[str], device: torch.device) -> Conditioning:
        if device.type == "cpu":
            return Conditioning.cat(self._memory.recall(prompts, self._find))
        if device not in self._on_device:
            capacity = self.backbone.embeddings_on_device * MEBIBYTE
            self._on_device[device] = PromptMemory(capacity, size=_bytes)
        return Conditioning.cat(self._on_device[device].recall(prompts, partial(self._send, device)))

    def prepare(self, prompts: list[str]) -> None:
        """Have them in memory, those that are not encoded together: what asks for them later finds them there."""
        self._memory.recall(prompts, self._find)

    def remember(self, prompt: str, row: Conditioning) -> None:
        """What was made elsewhere of one prompt, `[1, ...]`: kept in memory as if it were encoded here."""
        self._memory.recall([prompt], lambda _: [row])

    def _send(self, device: torch.device, prompts: list[str]) -> list[Conditioning]:
        found = Conditioning.cat(self._memory.recall(prompts, self._find))
        there = {name: send([tensor], device)[0] for name, tensor in found.tensors().items()}
        return _rows(Conditioning(**there))

    def bytes_of_a_prompt(self) -> int:
        """What one prompt's embedding takes, in memory or on disk; reads configs only."""
        return _bytes(self.backbone.blank_conditioning(1))

    def _find(self, prompts: list[str]) -> list[Conditioning]:
        if self.store is None:
            return self._encode(prompts)
        added = self.add_to_store([prompt for prompt in prompts if prompt not in self.store])
        return [added[prompt] if prompt in added else self.store.read(prompt) for prompt in prompts]

    def add_to_store(self, prompts: list[str]) -> dict[str, Conditioning]:
        """Encode prompts, write them to the disk and return them. Raises UserError where there is no text encoder."""
        assert self.store is not None, "the backbone has no embedding_cache"
        if prompts and not self.backbone.text_encoders:
            raise UserError(
                f"the embedding cache {self.store.folder} lacks the prompt {prompts[0]!r} and the backbone has no text "
                f"encoders; fill it with `{FILL}`, or set the backbone's text_encoders to true"
            )
        encoded = dict(zip(prompts, self._encode(prompts), strict=True)) if prompts else {}
        for prompt, row in encoded.items():
            self.store.write(prompt, row)
        return encoded

    def _encode(self, prompts: list[str]) -> list[Conditioning]:
        return _rows(self.backbone.encode_prompts(prompts).to(torch.device("cpu")))


def _rows(batch: Conditioning) -> list[Conditioning]:
    """Each prompt's, in memory of its own."""
    return [Conditioning.cat([batch[index : index + 1]]) for index in range(len(batch))]


def _bytes(row: Conditioning) -> int:
    return sum(tensor.nbytes for tensor in row.tensors().values())
