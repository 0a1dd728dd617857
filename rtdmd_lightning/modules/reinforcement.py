"""Stage 2's losses, each for one micro-batch of rollouts: SubGRPO on a stochastic step, and what is back-propagated through the
last one (METHOD section 4, item 5)."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.matching import MatchingModule
from rtdmd_lightning.modules.roles import GENERATOR
from rtdmd_lightning.modules.settings import FinalStepSettings, PolicySettings
from rtdmd_lightning.objectives import (
    clean_from_velocity,
    clipped_policy_loss,
    cps_kl,
    cps_log_prob,
    cps_mean_std,
    reward_hinge_loss,
)
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.sampling.structures import Conditioning, ExecutedStep
from rtdmd_lightning.utils.errors import UserError, require
from rtdmd_lightning.utils.randomness import SampleRandom

COLD_START = "cold_start"


class ReinforcementModule(MatchingModule):
    """A `MatchingModule` with the losses of METHOD section 4. Its roles include the cold start, `COLD_START`.

    Args:
        rewards: what to reinforce, with their weights.
        policy: SubGRPO.
        final_step: reward back-propagation and AC-DMD at the last step.
        backbone, batch_size, guidance_scale, shared: see `MatchingModule` and `DistillationModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        guidance_scale: tuple[float, float],
        rewards: RewardMixture,
        policy: PolicySettings = PolicySettings(),
        final_step: FinalStepSettings = FinalStepSettings(),
        **shared: Any,
    ) -> None:
        super().__init__(backbone, batch_size, guidance_scale, **shared)
        stochastic = range(len(self.sampler.steps) - 1)
        self.candidates = list(stochastic) if policy.steps is None else sorted(policy.steps)
        if len(set(self.candidates)) != len(self.candidates) or not set(self.candidates) <= set(stochastic):
            raise UserError(
                f"model.policy.steps must be different ones of the stochastic steps {list(stochastic)}, not {policy.steps}"
            )
        if policy.weight and not 1 <= policy.trained_steps <= len(self.candidates):
            raise UserError(
                f"model.policy.trained_steps must lie between 1 and {len(self.candidates)}, the number of stochastic steps "
                f"that may be chosen, not {policy.trained_steps}"
            )
        if policy.kl_weight and not policy.weight:
            raise UserError(
                "model.policy.kl_weight belongs to the policy's steps: it needs a model.policy.weight above 0"
            )
        if policy.weight and self.sampler.eta == 0:
            raise UserError("with model.sampler.eta 0 no step is stochastic: set model.policy.weight to 0")
        if final_step.reward_weight and not rewards.differentiable:
            raise UserError(
                f"none of the rewards {sorted(rewards.weights)} is back-propagated: name a differentiable one in "
                "model.rewards.back_propagated, or set model.final_step.reward_weight to 0"
            )
        require(
            policy.weight > 0 or final_step.is_trained,
            "nothing is trained: all of model.policy's and model.final_step's weights are 0",
        )
        self.rewards = rewards
        self.policy, self.final_step = policy, final_step
        self._noted: defaultdict[str, list[Tensor]] = defaultdict(list)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.rewards.to(self.device)

    def random_of(self, batch: PromptBatch) -> SampleRandom:
        return SampleRandom(self.seed, batch.indices, self.device)

    def log_prob(self, step: int, state: Tensor, velocity: Tensor, next_state: Tensor) -> Tensor:
        levels = {"sigma": self.sigmas[step], "sigma_next": self.sigmas[step + 1], "eta": self.sampler.eta}
        return cps_log_prob(state, velocity, next_state, **levels, exact=self.policy.exact_log_prob)

    def policy_loss(self, rollout: Rollout, step: int) -> Tensor:
        """The clipped policy loss of one stochastic step, the sum over the micro-batch; samples without advantage add nothing."""
        conditioning = self.embed(rollout.batch.prompts, self.device)
        state, next_state = (rollout.states[index].to(self.device).float() for index in (step, step + 1))
        advantages, old_log_prob = rollout.advantages.to(self.device), rollout.log_probs[step].to(self.device)
        velocity = self.velocity(GENERATOR, state, self.sigmas[step], conditioning)
        log_prob = self.log_prob(step, state, velocity, next_state)
        loss = clipped_policy_loss(
            log_prob,
            old_log_prob,
            advantages,
            clip_range=self.policy.clip_range,
            adv_clip_max=self.policy.advantage_clip,
        )
        deviation = (log_prob.detach() - old_log_prob).expm1().abs()
        self._noted["policy/ratio_deviation"].append(deviation)
        self._noted["policy/clipped"].append((deviation > self.policy.clip_range).float())
        loss = self.policy.weight * loss
        if self.policy.kl_weight:
            kl = self.kl_to_cold_start(step, state, velocity, conditioning)
            loss = loss + self.policy.kl_weight * (kl * (advantages != 0)).mean()
        return len(advantages) * loss

    def kl_to_cold_start(self, step: int, state: Tensor, velocity: Tensor, conditioning: Conditioning) -> Tensor:
        """`[B]`: how far the step's mean is from the stage-1 generator's."""
        levels = {"sigma": self.sigmas[step], "sigma_next": self.sigmas[step + 1], "eta": self.sampler.eta}
        with torch.no_grad():
            reference = self.velocity(COLD_START, state, self.sigmas[step], conditioning)
        reference_mean, std = cps_mean_std(state, reference, **levels)
        mean, _ = cps_mean_std(state, velocity, **levels)
        return cps_kl(mean, reference_mean, std=std, exact=self.policy.exact_log_prob)

    def kept_rows(self, rollout: Rollout) -> list[int]:
        """The samples that have an advantage; all of them where back-propagation alone, which needs none, is trained."""
        if not self.policy.weight:
            return list(range(len(rollout.advantages)))
        return rollout.advantages.nonzero().flatten().tolist()

    def final_step_loss(self, rollout: Rollout, rows: list[int], guidance_scale: float) -> Tensor:
        """All that is trained at the last step, the sum over some rows of the micro-batch."""
        return torch.stack(list(self.final_step_terms(rollout, rows, guidance_scale).values())).sum()

    def final_step_terms(self, rollout: Rollout, rows: list[int], guidance_scale: float) -> dict[str, Tensor]:
        """AC-DMD and reward back-propagation, those that have a weight, times it: sums over some rows of the micro-batch.

        A process without any computes along, with weight zero: sharded forward passes need every rank.
        """
        drawn = rows or [0]
        batch = rollout.batch.at(drawn)
        conditioning = self.embed(batch.prompts, self.device)
        state = rollout.states[-2][drawn].to(self.device).float()
        sigma = self.sigmas[-2]
        velocity = self.velocity(GENERATOR, state, sigma, conditioning)
        sample = clean_from_velocity(state, velocity, sigma=sigma)
        terms = {}
        if self.final_step.matching_weight:
            step = ExecutedStep(sigma, 0.0, state, velocity, torch.zeros_like(state), sample)
            random = self.random_of(batch)
            matching = self.generator_matching_loss(step, conditioning, random, guidance_scale, "generator update")
            self._noted["final_step/matching_loss"].append(matching.detach().expand(len(rows)))
            terms["AC-DMD"] = len(rows) * (self.final_step.matching_weight * matching)
        if self.final_step.reward_weight:
            hinge = reward_hinge_loss(self.differentiable_reward(sample, batch), ceiling=self.final_step.reward_ceiling)
            self._noted["final_step/reward_loss"].append(hinge.detach().expand(len(rows)))
            terms["reward back-propagation"] = len(rows) * (self.final_step.reward_weight * hinge)
        return terms

    def log_noted(self) -> None:
        """Log what the losses have noted of each sample since the last time: the mean, of the ratio's deviation the largest."""
        for name, of_samples in self._noted.items():
            values = torch.cat(of_samples)
            if len(values):
                self.log(name, values.max() if name == "policy/ratio_deviation" else values.mean())
        self._noted.clear()

    def differentiable_reward(self, samples: Tensor, batch: PromptBatch) -> Tensor:
        """`Σ_i w_i·r_i` of the decoded samples, `[B]`, with gradient; decoder and rewards run again in the backward pass."""

        def reward(latents: Tensor, part: PromptBatch) -> Tensor:
            with torch.autocast(self.device.type, enabled=False):
                return self.rewards.differentiable_sum(self.images(latents), part.prompts, part.metadata)

        size = self.final_step.decode_chunk
        chunks = [slice(start, start + size) for start in range(0, len(samples), size)]
        # torch ends a recomputation early by raising inside it, which would read as a failure of the reward.
        with set_checkpoint_early_stop(False):
            return torch.cat([checkpoint(reward, samples[c], batch[c], use_reentrant=False) for c in chunks])

    def images(self, latents: Tensor) -> Tensor:
        return self.backbone.decode(latents).clamp(0, 1)

    def last_step(self, rollout: Rollout) -> ExecutedStep:
        """The deterministic step of a stored trajectory; its velocity follows from the two states."""
        state, sample = (state.to(self.device).float() for state in rollout.states[-2:])
        sigma = self.sigmas[-2]
        return ExecutedStep(sigma, 0.0, state, (state - sample) / sigma, torch.zeros_like(state), sample)
