"""LAION's aesthetic predictor: how pretty is the picture, whatever the prompt? (METHOD section 6)"""

import torch
from torch import Tensor, nn

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.clip_models import ClipEncoder
from rtdmd_lightning.rewards.state import fill, read_state
from rtdmd_lightning.rewards.weights import Source

CLIP_HUB_ID = "openai/clip-vit-large-patch14"
HEAD_HUB_ID = "trl-lib/ddpo-aesthetic-predictor"  # a copy of LAION's sac+logos+ava1-l14-linearMSE.pth
HEAD_FILENAME = "aesthetic-model.pth"


class AestheticHead(nn.Module):
    """The published head: five linear layers with nothing between them but dropout, which is off when scoring.

    Args:
        embedding: width of the CLIP embedding; 768 as published.
    """

    def __init__(self, embedding: int = 768) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embedding, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings).squeeze(-1)


class AestheticReward(Reward):
    """A mark between 1 and 10, about 5.5 for a good picture, from the unit-norm CLIP ViT-L/14 embedding.

    Args:
        weights: the head's file, its folder or hub id; LAION's own file has the same keys. Without it see `weights.locate`.
        clip: folder or hub id of the `CLIPModel` with its processor; without it that of `clipscore`.
    """

    name = "aesthetic"
    differentiable = True

    def __init__(self, weights: str | None = None, clip: str | None = None) -> None:
        self.weights = weights
        self.clip = clip

    def sources(self) -> list[Source]:
        head = Source(self.name, HEAD_HUB_ID, self.weights, HEAD_FILENAME)
        return [head, Source("clipscore", CLIP_HUB_ID, self.clip)]

    def load(self) -> None:
        path, source = (source.locate() for source in self.sources())
        self._clip = ClipEncoder(self.name, source, source)
        self._head = AestheticHead(self._clip.model.config.projection_dim)
        fill(self._head, read_state(self.name, path), reward=self.name, path=path)
        self._head.float()

    def networks(self) -> list[nn.Module]:
        return [self._clip.model, self._head]

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self._head(self._clip.images(images))
