"""What a reward is."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Reward(ABC):
    """Scores images against their prompts.

    `name` keys it in logs and results; `differentiable` says whether the score carries a gradient to the pixels.
    """

    name: str
    differentiable: bool

    @abstractmethod
    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        """`[B, 3, H, W]` images in [0, 1], their B prompts and GenEval-style metadata, to `[B]` float32 scores."""

    def to(self, device: torch.device) -> None:  # noqa: B027 (a reward without weights has nothing to move)
        """Move the reward's weights, if it has any."""
