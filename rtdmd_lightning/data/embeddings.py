"""Prompt embeddings, computed once per prompt and kept in memory."""

from collections import OrderedDict

import torch

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
        self._cache: OrderedDict[str, Conditioning] = OrderedDict()

    def __call__(self, prompts: list[str], device: torch.device) -> Conditioning:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        fresh = {}
        if new:
            encoded = self.backbone.encode_prompts(new).to(torch.device("cpu"))
            # Copies: a view in the cache would keep the whole batch's memory after the rest of it was forgotten.
            fresh = {prompt: Conditioning.cat([encoded[index : index + 1]]) for index, prompt in enumerate(new)}
        rows = [fresh[prompt] if prompt in fresh else self._cache[prompt] for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            self._cache[prompt] = row
            self._cache.move_to_end(prompt)
        while len(self._cache) > self.capacity:
            self._cache.popitem(last=False)
        return Conditioning.cat(rows).to(device)
