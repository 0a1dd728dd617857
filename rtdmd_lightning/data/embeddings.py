"""Prompt embeddings, computed once per prompt and kept in memory."""

import torch

from rtdmd_lightning.memory import PromptMemory
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.structures import Conditioning


class PromptEmbedder:
    """Prompts to conditioning through a least-recently-used cache on the CPU.

    Args:
        backbone: a loaded backbone; its text encoders see each prompt once while it stays in the cache.
        capacity: how many prompts the cache holds.
    """

    def __init__(self, backbone: Backbone, capacity: int = 16_384) -> None:
        self.backbone = backbone
        self.capacity = capacity
        self._cache: PromptMemory[Conditioning] = PromptMemory()

    def __call__(self, prompts: list[str], device: torch.device) -> Conditioning:
        rows = self._cache.recall(prompts, self._encode, self.capacity)
        return Conditioning.cat(rows).to(device)

    def _encode(self, prompts: list[str]) -> list[Conditioning]:
        encoded = self.backbone.encode_prompts(prompts).to(torch.device("cpu"))
        return [Conditioning.cat([encoded[index : index + 1]]) for index in range(len(prompts))]  # copies, not views
