"""What is trained at the last, deterministic step, where a policy gradient is blind (METHOD section 4, item 5)."""

import torch
from torch import Tensor

from rtdmd_lightning.data.embeddings import PromptEmbedder
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses.matching import MatchingLoss
from rtdmd_lightning.losses.reward_backprop import RewardBackprop
from rtdmd_lightning.losses.settings import FinalStepSettings, MatchingSettings
from rtdmd_lightning.losses.terms import Terms
from rtdmd_lightning.objectives import clean_from_velocity
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.roles import FAKE_SCORE, GENERATOR, TEACHER, Roles
from rtdmd_lightning.sampling.sampler import Sampler
from rtdmd_lightning.sampling.structures import ExecutedStep
from rtdmd_lightning.utils.randomness import SampleRandom


class FinalStepLoss:
    """`matching`, AC-DMD's pull towards the teacher, and `reward`, back-propagation of the rewards: those that have a weight.

    `scores` is what the last call saw of each reward that is back-propagated, `[B]`.
    """

    needs = (GENERATOR, FAKE_SCORE, TEACHER)

    def __init__(
        self,
        roles: Roles,
        sampler: Sampler,
        settings: FinalStepSettings,
        matching: MatchingSettings,
        rewards: RewardMixture,
        embed: PromptEmbedder,
    ) -> None:
        self.roles, self.sampler, self.settings, self.embed = roles, sampler, settings, embed
        self.matching_loss = MatchingLoss(roles, sampler, matching, embed, settings.matching_weight)
        self.reward_backprop = RewardBackprop(roles.backbone, rewards, settings)
        self.scores: dict[str, Tensor] = {}

    def __call__(self, state: Tensor, batch: PromptBatch, random: SampleRandom, guidance_scale: float) -> Terms:
        """Of states `[B, ...]` at the last level above 0: one generator forward, means over the samples."""
        conditioning, sigma = self.embed(batch.prompts, state.device), self.sampler.sigmas[-2]
        velocity = self.roles.velocity(GENERATOR, state, sigma, conditioning)
        sample = clean_from_velocity(state, velocity, sigma=sigma)
        terms: Terms = {}
        if self.settings.matching_weight:
            step = ExecutedStep(sigma, 0.0, state, velocity, torch.zeros_like(state), sample)
            terms |= self.matching_loss(step, conditioning, random, guidance_scale)
        if self.settings.reward_weight:
            terms |= self.reward_backprop(sample, batch)
            self.scores = self.reward_backprop.scores
        return terms
