"""HPS v2.1: how people rank images for a prompt, by a CLIP ViT-H-14 fine-tuned on their choices (METHOD section 6)."""

from typing import Any

import torch
from torch import Tensor, nn

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.compat import hpsv2_open_clip
from rtdmd_lightning.rewards.preprocess import ClipPreprocess
from rtdmd_lightning.rewards.prompt_features import PromptFeatures
from rtdmd_lightning.rewards.state import build_empty, fill, read_state
from rtdmd_lightning.rewards.weights import Source

HUB_ID = "xswu/HPSv2"
FILENAME = "HPS_v2.1_compressed.pt"
ARCHITECTURE = "ViT-H-14"


class HPSv2Reward(Reward):
    """Cosine between the image's and the prompt's embedding, about 0.28 for a good picture.

    The model and its tokenizer are the `hpsv2` package's. It scores in float32 where the package's own script autocasts to
    half precision, also inside a training loop's autocast, because training asks for gradients of small differences.

    Args:
        weights: folder, file or hub id of the checkpoint; without it see `weights.locate`.
        architecture: name of a configuration known to the package's open_clip.
    """

    name = "hpsv2"
    differentiable = True

    def __init__(self, weights: str | None = None, architecture: str = ARCHITECTURE) -> None:
        self.weights = weights
        self.architecture = architecture

    def sources(self) -> list[Source]:
        return [Source(self.name, HUB_ID, self.weights, FILENAME)]

    def load(self) -> None:
        (path,) = (source.locate() for source in self.sources())
        self._clip = empty_clip(self.architecture)
        fill(self._clip, read_state(self.name, path), reward=self.name, path=path)
        self._clip.float()
        self._preprocess = clip_preprocess(self._clip)
        self._prompt_features = PromptFeatures(self._encode)

    def networks(self) -> list[nn.Module]:
        return [self._clip]

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        text_features = self._prompt_features(prompts, self._clip.logit_scale)
        with torch.autocast(images.device.type, enabled=False):
            pixels = self._preprocess(images.to(self._clip.logit_scale))
            image_features = self._clip.encode_image(pixels, normalize=True)
        return (image_features * text_features).sum(-1)

    def _encode(self, prompts: list[str]) -> Tensor:
        device = self._clip.logit_scale.device
        with torch.autocast(device.type, enabled=False):
            return self._clip.encode_text(hpsv2_open_clip().tokenize(prompts).to(device), normalize=True)


def empty_clip(architecture: str) -> Any:
    """The package's CLIP without values."""
    open_clip = hpsv2_open_clip()
    return build_empty(lambda: open_clip.CLIP(**open_clip.get_model_config(architecture)))


def clip_preprocess(clip: Any) -> ClipPreprocess:
    """The package's evaluation transform of that network in tensors."""
    open_clip = hpsv2_open_clip()
    side = clip.visual.image_size[0]
    return ClipPreprocess(side, side, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
