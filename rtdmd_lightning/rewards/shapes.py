"""The toy world's checker as a reward."""

import torch
from torch import Tensor

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.shapes.checker import check
from rtdmd_lightning.utils.errors import UserError


class ShapesReward(Reward):
    """GenEval's soft score (mean of the terms), or with `strict` 1 where everything is exactly right and else 0.

    Scoring raises UserError for a prompt whose metadata lacks `include`, which is what the checker checks.
    """

    differentiable = False

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.name = "shapes_strict" if strict else "shapes"

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        for prompt, entry in zip(prompts, metadata, strict=True):
            if "include" not in entry:
                raise UserError(
                    f"{self.name}: the prompt {prompt!r} has no GenEval metadata ('include'); take its prompts from a jsonl "
                    "file that has it, or from shapes:held_out:N"
                )
        verdicts = check(images, metadata)
        return torch.tensor([float(v.strict) if self.strict else v.soft for v in verdicts], device=images.device)
