"""A backbone that encodes prompts at no cost and records which it was given."""

import torch

from rtdmd_lightning.sampling.structures import Conditioning


class CountingBackbone:
    """Encodes a text as its length and first letter, and records what it was given."""

    embedding_cache = None
    embeddings_on_device = 1

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        self.calls.append(prompts)
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        letters = torch.tensor([float(ord(prompt[:1] or " ")) for prompt in prompts])
        return Conditioning(lengths[:, None, None].repeat(1, 3, 2), letters[:, None].repeat(1, 5))

    def blank_conditioning(self, count: int) -> Conditioning:
        return Conditioning(torch.zeros(count, 3, 2), torch.zeros(count, 5))


def assert_encodes(conditioning: Conditioning, prompts: list[str]) -> None:
    expected = CountingBackbone().encode_prompts(prompts)
    assert torch.equal(conditioning.embeds, expected.embeds)
    assert torch.equal(conditioning.pooled, expected.pooled)
