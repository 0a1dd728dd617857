"""Rollouts of the generator with their rewards and advantages: what a reinforcement epoch learns from (METHOD section 4)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial

import torch
from torch import Tensor

from rtdmd_lightning.data.rollout import Rollout, collect, shared_noise, with_advantages
from rtdmd_lightning.data.scoring import Scorer, Scores, Scoring, ScoringLater
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import PolicySettings
from rtdmd_lightning.models.placement import TEXT_ENCODERS, VAE
from rtdmd_lightning.modules.memory import REWARDS
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.drawing import decode
from rtdmd_lightning.roles.roles import GENERATOR

LogProb = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Of step `number` from a state with a velocity to the next state, `[B]`."""

Listener = Callable[[Sequence[Rollout], int, Sequence[int]], None]
"""Is told of every epoch's rollouts, its number and its trained steps, before anything is updated."""


class Explorer:
    """Makes the rollouts of an epoch; a batch is scored while the next one is rolled out, the last ones for as long as the caller
    does without their rewards.

    Args:
        module: whose roles act.
        rewards: what scores the images.
        settings: how advantages are made, and which noises a prompt group shares.
        log_prob: of a step; see `PolicyLoss.log_prob`.
        trajectory_dtype: how states are stored; they are rounded as they are made, so nothing is lost.
        role: who acts.
    """

    def __init__(
        self,
        module: FewStepModule,
        rewards: RewardMixture,
        settings: PolicySettings,
        log_prob: LogProb,
        trajectory_dtype: torch.dtype = torch.float32,
        role: str = GENERATOR,
    ) -> None:
        self.module, self.rewards, self.settings, self.log_prob = module, rewards, settings, log_prob
        self.trajectory_dtype, self.role = trajectory_dtype, role

    def __call__(self, batch: PromptBatch, epoch: int, chosen: Sequence[int]) -> tuple[list[Rollout], Scores]:
        """A rollout for each of the step's batches, with advantages; and the rewards of all processes, `[N]` by name.

        `chosen` are the steps whose log-probabilities are kept.
        """
        with self.scoring() as scoring:
            return self.with_advantages(self.roll_out(batch, epoch, chosen, scoring), scoring)

    def load_rewards(self) -> None:
        """Their weights come to the device, or to where offloaded ones wait."""
        if REWARDS in self.module.memory.offload:
            self.rewards.offload()
        self.rewards.to(self.module.device)

    def scoring(self) -> AbstractContextManager[Scoring]:
        """For `roll_out` and `with_advantages`, both in its body."""
        if REWARDS in self.module.memory.offload:
            return nullcontext(ScoringLater(self.rewards.score_all, self.module.device))
        return self._scorer.open()

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.score, self.module.device)

    def roll_out(self, batch: PromptBatch, epoch: int, chosen: Sequence[int], scoring: Scoring) -> list[Rollout]:
        """As `__call__`, their advantages still zeros, some of the images still to be scored."""
        batches = batch.split(self.module.micro_batch_size or len(batch.prompts) // self.module.batches_per_step)
        if TEXT_ENCODERS in self.module.memory.offload:
            self.module.embed.prepare(batch.prompts)  # before the first rollout, or they would come for every batch
        with self.module.timed("rollout"), self.module.backbone.at_work(VAE):
            return collect(batches, partial(self.sample, epoch=epoch, chosen=chosen), scoring)

    def with_advantages(self, rollouts: Sequence[Rollout], scoring: Scoring) -> tuple[list[Rollout], Scores]:
        """Wait for the scores: the rollouts, shuffled or not, with advantages, and the rewards, as `__call__` gives them."""
        with self.module.timed("scoring"):
            indices, scores = scoring.results()
        return with_advantages(
            rollouts,
            indices,
            scores,
            self.rewards.weights,
            images_per_prompt=self.module.images_per_prompt,
            global_std=self.settings.global_std,
            gather=self.module.gather,
        )

    def sample(
        self, batch: PromptBatch, epoch: int, chosen: Sequence[int]
    ) -> tuple[tuple[Tensor, ...], dict[int, Tensor], Tensor]:
        """States and log-probabilities by step (on the CPU) of one micro-batch, and its images."""
        module, shape = self.module, self.module.backbone.latent_shape()
        random = module.random_of(batch)

        def step_noise(number: int) -> Tensor:
            if number in chosen or not self.settings.shared_noise:
                return random.normal(f"step {number}", shape)
            shared = shared_noise(batch.prompts, shape, seed=module.seed, epoch=epoch, step=number)
            return shared.to(module.device)

        conditioning, dtype = module.embed(batch.prompts, module.device), self.trajectory_dtype
        trajectory = module.roll_out(self.role, conditioning, random, step_noise=step_noise, state_dtype=dtype)
        states, velocities = trajectory.states, trajectory.velocities
        log_probs = {
            number: self.log_prob(number, states[number], velocities[number], states[number + 1]).cpu()
            for number in chosen
        }
        stored = tuple(state.to("cpu", dtype) for state in states)
        return stored, log_probs, decode(module.backbone, trajectory.samples)

    def score(self, images: Tensor, batch: PromptBatch) -> Scores:
        return self.rewards.score(images, batch.prompts, batch.metadata)
