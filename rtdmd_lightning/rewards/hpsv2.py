"""HPS v2.1: how people rank images for a prompt, by a CLIP ViT-H-14 fine-tuned on their choices (METHOD section 6)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.compat import hpsv2_open_clip
from rtdmd_lightning.rewards.precision import TowerDtype, at_least_float32, in_precision, tower_dtype
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
        dtype: of the network: bfloat16 and float16 take half its memory; `rewards/README.md` has what that does to the scores.
    """

    name = "hpsv2"
    differentiable = True
    dtype: torch.dtype

    def __init__(
        self, weights: str | None = None, architecture: str = ARCHITECTURE, dtype: TowerDtype = "float32"
    ) -> None:
        self.weights = weights
        self.architecture = architecture
        self.dtype = tower_dtype(self.name, dtype)

    def sources(self) -> list[Source]:
        return [Source(self.name, HUB_ID, self.weights, FILENAME)]

    def load(self) -> None:
        (path,) = (source.locate() for source in self.sources())
        self._clip = empty_clip(self.architecture)
        fill(self._clip, read_state(self.name, path), reward=self.name, path=path)
        self._clip.to(self.dtype)
        self._preprocess = clip_preprocess(self._clip)
        self._prompt_features = PromptFeatures(self._encode)

    def networks(self) -> list[nn.Module]:
        return [self._clip]

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        dtype = self._clip.logit_scale.dtype
        with torch.autocast(images.device.type, enabled=False):
            pixels = self._preprocess(images.to(self._clip.logit_scale.device, at_least_float32(dtype)))
            image_features = F.normalize(in_precision(self._clip.encode_image, pixels, dtype), dim=-1)
        return (image_features * self._prompt_features(prompts, image_features.detach())).sum(-1)

    def _encode(self, prompts: list[str]) -> Tensor:
        device = self._clip.logit_scale.device
        with torch.autocast(device.type, enabled=False):
            features = self._clip.encode_text(hpsv2_open_clip().tokenize(prompts).to(device), normalize=False)
            return F.normalize(features.to(at_least_float32(features.dtype)), dim=-1)


def empty_clip(architecture: str) -> Any:
    """The package's CLIP without values."""
    open_clip = hpsv2_open_clip()
    return build_empty(lambda: open_clip.CLIP(**open_clip.get_model_config(architecture)))


def clip_preprocess(clip: Any) -> ClipPreprocess:
    """The package's evaluation transform of that network in tensors."""
    open_clip = hpsv2_open_clip()
    side = clip.visual.image_size[0]
    return ClipPreprocess(side, side, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
