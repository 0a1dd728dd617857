"""A frozen `CLIPModel` with its processor: embeddings of pictures, with gradient, and of prompts, remembered."""

from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.precision import TowerDtype, at_least_float32, in_precision, tower_dtype
from rtdmd_lightning.rewards.preprocess import ClipPreprocess, Resize
from rtdmd_lightning.rewards.prompt_features import PromptFeatures
from rtdmd_lightning.rewards.weights import Source, loading
from rtdmd_lightning.utils.errors import UserError, require


class ClipEncoder:
    """Unit-norm embeddings in float32 (or in float64, where the model has been converted to that).

    Autocast is switched off inside: two pictures of one prompt differ in the third digit, where bfloat16 sees no difference.

    Args:
        reward: name of the reward that asks, for error messages.
        source: folder or hub id of the model.
        processor: folder or hub id of its image processor and tokenizer.
        resize: of the pictures; bicubic is the processor's own.
        dtype: of the network; what comes before and after it is float32 all the same.
    """

    def __init__(
        self,
        reward: str,
        source: str,
        processor: str,
        resize: Resize = "bicubic",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = _load_model(reward, source)
        scale = self.model.logit_scale.data
        self.model.to(dtype)
        self.model.logit_scale.data = scale  # it multiplies every score: rounded, it would shift them all
        with loading(reward, processor):
            self.preprocess = ClipPreprocess.from_pretrained(processor, resize)
            self.tokenizer = CLIPTokenizer.from_pretrained(processor)
        self._prompt_features = PromptFeatures(self._encode)

    def images(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` in [0, 1] to `[B, D]`."""
        with torch.autocast(images.device.type, enabled=False):
            pixels = self.preprocess(images.to(at_least_float32(self.dtype)))
            return F.normalize(in_precision(self._features, pixels, self.dtype), dim=-1)

    def prompts(self, prompts: list[str]) -> Tensor:
        """B prompts to `[B, D]`, without gradient; each is encoded once while it is among the last remembered."""
        return self._prompt_features(prompts, self.model.logit_scale)

    def logits(self, images: Tensor, prompts: list[str]) -> Tensor:
        """`[B]`: the cosine of each picture with its own prompt, times the model's logit scale."""
        cosine = (self.images(images) * self.prompts(prompts)).sum(dim=-1)
        return cosine * self.model.logit_scale.exp()

    def _encode(self, prompts: list[str]) -> Tensor:
        with torch.autocast(self.model.device.type, enabled=False):
            tokens = self.tokenizer(
                prompts,
                padding=True,
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self.model.device)
            features = self.model.get_text_features(**tokens).pooler_output
            return F.normalize(features.to(at_least_float32(self.dtype)), dim=-1)

    @property
    def dtype(self) -> torch.dtype:
        """The network's."""
        return self.model.visual_projection.weight.dtype

    def _features(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output


class ClipLogitReward(Reward):
    """A picture's CLIP logit for its prompt, over a constant that makes it a handy number; see the two subclasses.

    Args:
        weights: folder or hub id of a `CLIPModel`; without it see `weights.locate`.
        processor: folder or hub id of the image processor and tokenizer, where the model's folder does not hold them.
        resize: of the pictures, antialiased: bilinear, torchvision's default, or bicubic, the processor's own.
        dtype: of the network.

    Raises UserError for another resize or dtype.
    """

    published: str
    published_processor: str
    divisor: float
    differentiable = True
    dtype: torch.dtype

    def __init__(self, weights: str | None, processor: str | None, resize: Resize, dtype: TowerDtype) -> None:
        known = get_args(Resize)
        require(resize in known, f"{self.name}: resize must be {' or '.join(known)}, not {resize!r}")
        self.weights = weights
        self.processor = processor
        self.resize: Resize = resize
        self.dtype = tower_dtype(self.name, dtype)

    def sources(self) -> list[Source]:
        """The model, and the processor where the model's folder does not hold it."""
        model = Source(self.name, self.published, self.weights)
        found = model.locate()
        held = found == self.published_processor or (Path(found) / "preprocessor_config.json").exists()
        if self.processor is None and held:
            return [model]
        return [model, Source(f"{self.name}-processor", self.published_processor, self.processor)]

    def load(self) -> None:
        located = [source.locate() for source in self.sources()]
        self._clip = ClipEncoder(self.name, located[0], located[-1], self.resize, self.dtype)

    def networks(self) -> list[torch.nn.Module]:
        return [self._clip.model]

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        return self._clip.logits(images, prompts) / self.divisor


def _load_model(reward: str, source: str) -> CLIPModel:
    with loading(reward, source):
        config = CLIPConfig.from_pretrained(source)
        if config.model_type != "clip":
            raise UserError(f"{reward}: {source} holds a model of type {config.model_type!r}, not a CLIPModel")
        model, report = CLIPModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise UserError(f"{reward}: {source} lacks {len(lacking)} of CLIPModel's weights, {lacking[0]} among them")
    return model.requires_grad_(False).eval()
