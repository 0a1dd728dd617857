"""ImageReward-v1.0: a BLIP that looks at image and prompt together, with a small head, fitted to human preferences."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.compat import bert_tokenizer, image_reward
from rtdmd_lightning.rewards.preprocess import ClipPreprocess
from rtdmd_lightning.rewards.state import build_empty, fill, read_state
from rtdmd_lightning.rewards.weights import Source
from rtdmd_lightning.utils.errors import UserError

HUB_ID = "THUDM/ImageReward"
FILENAME = "ImageReward.pt"
MED_CONFIG = "med_config.json"
TOKENIZER_HUB_ID = "google-bert/bert-base-uncased"
VOCABULARY = "vocab.txt"

MAX_TOKENS = 35
SIDE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImageRewardReward(Reward):
    """About 1 for a good picture; mean 0 and deviation 1 over the pictures it was fitted to.

    The model is the `image-reward` package's class; it scores in float32, also inside a training loop's autocast.

    Args:
        weights: folder or hub id with `ImageReward.pt` and `med_config.json`; without it see `weights.locate`.
        tokenizer: folder or hub id with BERT's `vocab.txt`, likewise.
    """

    name = "imagereward"
    differentiable = True

    def __init__(self, weights: str | None = None, tokenizer: str | None = None) -> None:
        self.weights = weights
        self.tokenizer = tokenizer

    def sources(self) -> list[Source]:
        """The checkpoint, the configuration of its text encoder, and the vocabulary."""
        checkpoint, config = (Source(self.name, HUB_ID, self.weights, name) for name in (FILENAME, MED_CONFIG))
        return [checkpoint, config, Source(self.name, TOKENIZER_HUB_ID, self.tokenizer, VOCABULARY)]

    def load(self) -> None:
        if self.weights is not None and Path(self.weights).expanduser().is_file():
            raise UserError(f"imagereward: weights must be the folder that holds {FILENAME} and {MED_CONFIG}")
        path, config, vocabulary = (source.locate() for source in self.sources())
        self._blip = empty_image_reward(config)
        fill(self._blip, read_state(self.name, path), reward=self.name, path=path)
        self._blip.float()
        self._tokenizer = bert_tokenizer(vocabulary)
        self._blip.blip.tokenizer = self._tokenizer
        self._preprocess = ClipPreprocess(SIDE, SIDE, MEAN, STD)

    def networks(self) -> list[nn.Module]:
        return [self._blip]

    def to(self, device: torch.device) -> None:
        super().to(device)
        self._blip.device = device  # the package's class makes its masks there

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        tokens = self._tokenizer(
            prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            pixels = self._preprocess(images.to(self._blip.mlp.layers[0].weight))
            return self._blip.score_gard(tokens.input_ids, tokens.attention_mask, pixels).squeeze(-1)


def empty_image_reward(med_config: str) -> Any:
    """The package's network without values and without its tokenizer, which it would fetch from the hub."""
    module = image_reward()
    blip: Any = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    init_tokenizer, blip.init_tokenizer = blip.init_tokenizer, lambda: None
    try:
        return build_empty(lambda: module.ImageReward(med_config=med_config))
    finally:
        blip.init_tokenizer = init_tokenizer
