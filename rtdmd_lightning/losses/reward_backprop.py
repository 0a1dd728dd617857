"""Rewards back-propagated through decoder and generator at the last, deterministic step (METHOD section 4, item 5)."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses.settings import FinalStepSettings
from rtdmd_lightning.losses.terms import Term, Terms
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.objectives import reward_hinge_loss
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.roles import GENERATOR


class RewardBackprop:
    """`reward`: `mean(relu(ceiling - Σ_i w_i·r_i))` over the rewards that are back-propagated.

    `scores` is what the last call saw of each of them, `[B]`.
    """

    needs = (GENERATOR,)

    def __init__(self, backbone: Backbone, rewards: RewardMixture, settings: FinalStepSettings) -> None:
        self.backbone, self.rewards, self.settings = backbone, rewards, settings
        self.scores: dict[str, Tensor]

    def __call__(self, samples: Tensor, batch: PromptBatch) -> Terms:
        """Of clean latents `[B, ...]`, with gradient to them."""
        hinge = reward_hinge_loss(self.reward(samples, batch), ceiling=self.settings.reward_ceiling)
        return {"reward": Term(hinge, self.settings.reward_weight)}

    def reward(self, samples: Tensor, batch: PromptBatch) -> Tensor:
        """`Σ_i w_i·r_i` of the decoded samples, `[B]`; decoder and rewards run again in the backward pass, chunk by chunk."""

        def of_chunk(latents: Tensor, part: PromptBatch) -> Tensor:
            with torch.autocast(latents.device.type, enabled=False):
                images = self.backbone.decode(latents).clamp(0, 1)
                scores = self.rewards.differentiable_scores(images, part.prompts, part.metadata)
                return torch.stack(list(scores.values()))

        # torch ends a recomputation early by raising inside it, which would read as a failure of the reward.
        with set_checkpoint_early_stop(False):
            scores = torch.cat(
                [checkpoint(of_chunk, samples[c], batch[c], use_reentrant=False) for c in self.chunks(len(samples))],
                dim=1,
            )
        named = dict(zip(self.rewards.differentiable, scores, strict=True))
        self.scores = {name: values.detach() for name, values in named.items()}
        return torch.stack([self.rewards.weights[name] * values for name, values in named.items()]).sum(dim=0)

    def chunks(self, count: int) -> list[slice]:
        """What is decoded at once."""
        size = self.settings.decode_chunk
        return [slice(start, start + size) for start in range(0, count, size)]
