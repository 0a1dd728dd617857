"""The colour of a detected object: CLIP ViT-L/14, zero-shot, on the object cut out before a grey ground, as GenEval does it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdmd_lightning.geneval.vocabulary import COLORS
from rtdmd_lightning.rewards.instances import Box, Segment
from rtdmd_lightning.rewards.preprocess import ClipPreprocess
from rtdmd_lightning.rewards.weights import Source, loading

CLIP_HUB_ID = "timm/vit_large_patch14_clip_224.openai"
TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")
GROUND = 0.6  # the grey #999


@dataclass(frozen=True)
class Objects:
    """The objects of one class in one image `[3, H, W]`, and whether their colour is wanted."""

    label: str
    image: Tensor
    segments: list[Segment]
    colored: bool


class ColorNamer:
    """Names one of GenEval's ten colours.

    Args:
        weights: folder or hub id of an open_clip model; without it see `weights.locate` (reward `geneval/clip`).
    """

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights

    def source(self) -> Source:
        return Source("geneval/clip", CLIP_HUB_ID, self.weights)

    def load(self) -> None:
        import open_clip

        source = self.source().locate()
        schema = f"local-dir:{source}" if Path(source).exists() else f"hf-hub:{source}"
        with loading("geneval/clip", source):
            try:
                self._clip: Any = open_clip.create_model(schema, require_pretrained=True)
            except RuntimeError as error:  # open_clip's word for a file that it cannot download or fit
                raise OSError(str(error)) from error
            self._tokenize = open_clip.get_tokenizer(schema)
        self._clip.requires_grad_(False).eval()
        config = self._clip.visual.preprocess_cfg
        side = self._clip.visual.image_size[0]
        self._preprocess = ClipPreprocess(side, side, tuple(config["mean"]), tuple(config["std"]))
        self._classifiers: dict[str, Tensor] = {}

    def networks(self) -> list[nn.Module]:
        return [self._clip]

    @torch.no_grad()
    def name_colors(self, groups: Sequence[Objects]) -> list[list[str]]:
        """The colour of each object of each group, empty where it is not wanted; the device is asked once for all of them."""
        best = [self._best(group) for group in groups if group.colored and group.segments]
        indices = iter(torch.cat(best).tolist() if best else [])
        return [[COLORS[next(indices)] if group.colored else "" for _ in group.segments] for group in groups]

    def _best(self, group: Objects) -> Tensor:
        """`[N]`: which colour each of N objects has."""
        cuts = [cut_out(group.image, segment.mask, segment.box) for segment in group.segments]
        crops = [self._preprocess(cut[None]) for cut in cuts]
        features = F.normalize(self._clip.encode_image(torch.cat(crops)), dim=-1)
        return (features @ self._classifier(group.label).T).argmax(-1)

    def _classifier(self, label: str) -> Tensor:
        """`[10, D]`: for each colour the mean of the templates' embeddings, normalised before and after."""
        if label not in self._classifiers:
            texts = [template.format(color=color, label=label) for color in COLORS for template in TEMPLATES]
            device = self._clip.logit_scale.device
            features = F.normalize(self._clip.encode_text(self._tokenize(texts).to(device)), dim=-1)
            self._classifiers[label] = F.normalize(features.view(len(COLORS), len(TEMPLATES), -1).mean(1), dim=-1)
        return self._classifiers[label].to(self._clip.logit_scale.device)


def cut_out(image: Tensor, mask: Tensor, box: Box) -> Tensor:
    """The box's part of an image, grey outside of the mask: `[3, H, W]` to `[3, y1 - y0, x1 - x0]`."""
    x0, y0, x1, y1 = box
    return torch.where(mask, image, GROUND)[:, y0:y1, x0:x1]
