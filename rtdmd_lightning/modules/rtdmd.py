"""Stage 2, RTDMD: the few-step generator is made better than its teacher (METHOD section 4).

One training step is one epoch: rollouts of `micro_batches` batches by the current generator, their rewards and advantages, one
fake-score update over all of them, one generator update over all of them. The cold start lies frozen under fresh adapters of
generator and fake score. The generator's loss has three parts:

* SubGRPO on the chosen stochastic steps, which needs no gradient of a reward;
* at the last, deterministic step, where a policy gradient is blind: back-propagation of the differentiable rewards;
* there too, AC-DMD's pull towards the teacher, which keeps the images images.

There is one generator forward per (micro-batch, trained step), shared by all terms of that step. In samples of the transformer,
N of them in an epoch, K sampler steps, T trained stochastic steps:

* rollouts: K*N;
* the fake score: as AC-DMD's update, N and 2N for the two-sample consistency;
* the generator: (T+1)*N with gradient; at the last step 2N for the teacher with CFG and N for the fake score; T*N for the KL term
  where it has a weight. Weights of 0 save their passes, and so do micro-batches without a sample that has an advantage.

The rollout and the update see the same micro-batches in the same numerics, so that the probability ratio starts at 1: the clip
range of 1e-5 is narrower than what another batch shape changes in half precision.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rtdmd_lightning.data.rollout import Rollout, Scores, collect, shared_noise, with_advantages
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.errors import UserError
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.cold_start import cold_start_files
from rtdmd_lightning.modules.core import EMA, FAKE_SCORE, GENERATOR, TEACHER
from rtdmd_lightning.modules.matching import MatchingModule
from rtdmd_lightning.modules.settings import FinalStepSettings, PolicySettings
from rtdmd_lightning.objectives import (
    clean_from_velocity,
    clipped_policy_loss,
    cps_kl,
    cps_log_prob,
    cps_mean_std,
    reward_hinge_loss,
)
from rtdmd_lightning.randomness import SampleRandom, keyed_generator
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.structures import Conditioning, ExecutedStep

COLD_START, COLD_START_FAKE = "cold_start", "cold_start_fake_score"


class RTDMDModule(MatchingModule):
    """RTDMD. Every ablation is one option.

    Args:
        rewards: what to reinforce, with their weights.
        cold_start: the result of stage 1: its folder, with `generator_ema.pt` and `fake_score.pt`, or the generator's file alone.
        cold_start_fake: the fake score's file where it is not in that folder; `base` starts it from the teacher.
        images_per_prompt: K, the size of a group whose rewards are compared.
        micro_batches: batches of `batch_size` samples in an epoch.
        policy: SubGRPO.
        final_step: reward back-propagation and AC-DMD at the last step.
        trajectory_dtype: how states are stored between rollout and update; they are rounded as they are made, so nothing is lost.
        backbone, batch_size, guidance_scale, shared: see `MatchingModule` and `DistillationModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        guidance_scale: tuple[float, float],
        rewards: RewardMixture,
        cold_start: str,
        cold_start_fake: str | None = None,
        images_per_prompt: int = 24,
        micro_batches: int = 16,
        policy: PolicySettings = PolicySettings(),
        final_step: FinalStepSettings = FinalStepSettings(),
        trajectory_dtype: Literal["float32", "bfloat16"] = "float32",
        **shared: Any,
    ) -> None:
        super().__init__(backbone, batch_size, guidance_scale, **shared)
        stochastic = len(self.sampler.steps) - 1
        if policy.weight and not 1 <= policy.trained_steps <= stochastic:
            raise UserError(
                f"model.policy.trained_steps must lie between 1 and {stochastic}, the number of stochastic steps, "
                f"not {policy.trained_steps}"
            )
        if policy.weight and self.sampler.eta == 0:
            raise UserError("with model.sampler.eta 0 no step is stochastic: set model.policy.weight to 0")
        if final_step.reward_weight and not rewards.differentiable:
            raise UserError(
                f"none of the rewards {sorted(rewards.weights)} can be back-propagated: set model.final_step.reward_weight to 0"
            )
        if images_per_prompt < 2:
            raise UserError(f"model.images_per_prompt must be at least 2, not {images_per_prompt}: a group is compared")
        self.rewards = rewards
        self.cold_start, self.cold_start_fake = cold_start, cold_start_fake
        self.group_size, self.micro_batches = images_per_prompt, micro_batches
        self.policy, self.final_step = policy, final_step
        self.trajectory_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[trajectory_dtype]

    @property
    def groups_per_step(self) -> int:
        return self.micro_batches

    @property
    def images_per_prompt(self) -> int:
        return self.group_size

    def frozen_adapters(self) -> dict[str, str]:
        generator, fake_score = cold_start_files(self.cold_start, self.cold_start_fake)
        return {COLD_START: generator} | ({COLD_START_FAKE: fake_score} if fake_score else {})

    def adapter_stacks(self) -> dict[str, tuple[str, ...]]:
        _, fake_score = cold_start_files(self.cold_start, self.cold_start_fake)
        return {
            GENERATOR: (COLD_START, GENERATOR),
            EMA: (COLD_START, EMA),
            COLD_START: (COLD_START,),
            FAKE_SCORE: (*((COLD_START_FAKE,) if fake_score else ()), FAKE_SCORE),
            TEACHER: (),
        }

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.rewards.to(self.device)

    # The epoch --------------------------------------------------------------------------------------------------------

    def chosen_steps(self, epoch: int) -> list[int]:
        """The stochastic steps that are trained: a function of (seed, epoch), so the same on all ranks."""
        if not self.policy.weight:
            return []
        order = torch.randperm(len(self.sampler.steps) - 1, generator=keyed_generator(self.seed, epoch, "steps"))
        return sorted(order[: self.policy.trained_steps].tolist())

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        epoch = self.global_step
        chosen = self.chosen_steps(epoch)
        local = len(batch.prompts) // self.micro_batches
        batches = [batch[start : start + local] for start in range(0, len(batch.prompts), local)]
        with self.timed("rollout"):
            rollouts = collect(batches, lambda part: self.sample(part, epoch, chosen), self.score)
        rollouts, rewards = with_advantages(
            rollouts,
            self.rewards.weights,
            images_per_prompt=self.group_size,
            global_std=self.policy.global_std,
            gather=self.gather,
        )
        self.log_dict({f"reward/{name}": values.mean() for name, values in rewards.items()})
        if self.final_step.matching_weight:
            with self.timed("fake_update"):
                self.update_fake_score(rollouts)
        with self.timed("generator_update"):
            self.update_generator(rollouts, epoch, chosen)
        self.update_ema()

    def gather(self, values: Tensor) -> Tensor:
        """`[N]` of every process as `[processes * N]`."""
        gathered = self.all_gather(values.to(self.device))
        assert isinstance(gathered, Tensor)
        return gathered.flatten()

    # Rollouts ---------------------------------------------------------------------------------------------------------

    def random_of(self, batch: PromptBatch) -> SampleRandom:
        return SampleRandom(self.seed, batch.indices, self.device)

    def sample(
        self, batch: PromptBatch, epoch: int, chosen: Sequence[int]
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """States and log-probabilities (on the CPU) of one micro-batch, and its images."""
        random, shape = self.random_of(batch), self.backbone.latent_shape()

        def step_noise(step: int) -> Tensor:
            if step in chosen or not self.policy.shared_noise:
                return random.normal(f"step {step}", shape)
            return shared_noise(batch.prompts, shape, seed=self.seed, epoch=epoch, step=step).to(self.device)

        trajectory = self.roll_out(
            GENERATOR,
            self.embed(batch.prompts, self.device),
            random,
            step_noise=step_noise,
            state_dtype=self.trajectory_dtype,
        )
        log_probs = [
            self.log_prob(step, trajectory.states[step], trajectory.velocities[step], trajectory.states[step + 1])
            for step in chosen
        ]
        states = tuple(state.to("cpu", self.trajectory_dtype) for state in trajectory.states)
        images = self.images(trajectory.samples)
        return states, torch.stack(log_probs).cpu() if log_probs else torch.empty(0), images

    def score(self, images: Tensor, batch: PromptBatch) -> Scores:
        return self.rewards.score(images, batch.prompts, batch.metadata)

    def log_prob(self, step: int, state: Tensor, velocity: Tensor, next_state: Tensor) -> Tensor:
        levels = {"sigma": self.sigmas[step], "sigma_next": self.sigmas[step + 1], "eta": self.sampler.eta}
        return cps_log_prob(state, velocity, next_state, **levels, exact=self.policy.exact_log_prob)

    # The fake score ---------------------------------------------------------------------------------------------------

    def update_fake_score(self, rollouts: Sequence[Rollout]) -> None:
        """One optimizer step on `L_fake` at the last step (s = 0), the mean over all samples of the epoch."""

        def loss_of(rollout: Rollout) -> Tensor:
            batch = rollout.batch
            conditioning = self.embed(batch.prompts, self.device)
            return self.fake_matching_loss(self.last_step(rollout), conditioning, self.random_of(batch), "fake update")

        total = self.accumulate(FAKE_SCORE, [(loss_of, rollout) for rollout in rollouts], 1 / len(rollouts))
        self.log_dict({"fake_score/loss": total, "fake_score/grad_norm": self.step_optimizer(FAKE_SCORE)})

    def last_step(self, rollout: Rollout) -> ExecutedStep:
        """The deterministic step of a stored trajectory; its velocity follows from the two states."""
        state, sample = (state.to(self.device).float() for state in rollout.states[-2:])
        sigma = self.sigmas[-2]
        return ExecutedStep(sigma, 0.0, state, (state - sample) / sigma, torch.zeros_like(state), sample)

    # The generator ----------------------------------------------------------------------------------------------------

    def update_generator(self, rollouts: Sequence[Rollout], epoch: int, chosen: Sequence[int]) -> None:
        """One optimizer step on the mean of all terms over the epoch's kept samples and its trained steps."""
        dropping = bool(self.policy.weight)  # back-propagation alone has no use for advantages
        kept = torch.tensor(
            [rollout.advantages.count_nonzero() if dropping else len(rollout.advantages) for rollout in rollouts]
        )
        kept_everywhere = self.gather(kept).view(-1, len(rollouts)).sum(dim=0).tolist()
        total_kept = sum(kept_everywhere)
        self.log("policy/kept_samples", float(total_kept))
        remaining = [rollout for rollout, count in zip(rollouts, kept_everywhere, strict=True) if count]
        scale = self.trainer.world_size / (max(total_kept, 1) * (self.policy.trained_steps + 1))
        guidance_scale = self.draw_guidance(epoch)

        def final_loss(rollout: Rollout) -> Tensor:
            indices = (
                rollout.advantages.nonzero().flatten().tolist() if dropping else list(range(len(rollout.advantages)))
            )
            share = float(len(indices))
            return share * self.final_step_loss(rollout, indices or [0], guidance_scale)

        jobs: list[tuple[Callable[[Rollout], Tensor], Rollout]] = [
            (partial(self.policy_loss, step=step, row=row), rollout)
            for rollout, (row, step) in product(remaining, list(enumerate(chosen)))
        ]
        if self.final_step.matching_weight or self.final_step.reward_weight:
            jobs += [(final_loss, rollout) for rollout in remaining]
        total = self.accumulate(GENERATOR, jobs, scale)
        self.log_dict({"generator/loss": total, "generator/grad_norm": self.step_optimizer(GENERATOR)})

    def accumulate(
        self, role: str, jobs: Sequence[tuple[Callable[[Rollout], Tensor], Rollout]], scale: float
    ) -> Tensor:
        """Back-propagate `scale` times the loss of each job; gradients are synchronised once, with the last."""
        total = torch.zeros((), device=self.device)
        for loss_of, rollout in jobs[:-1]:
            with self.without_gradient_sync():
                loss = scale * loss_of(rollout)
                self.backward_in(role, loss)
                total += loss.detach()
        for loss_of, rollout in jobs[-1:]:
            loss = scale * loss_of(rollout)
            self.backward_in(role, loss)
            total += loss.detach()
        return total

    def policy_loss(self, rollout: Rollout, step: int, row: int) -> Tensor:
        """The clipped policy loss of one stochastic step, the sum over the micro-batch; samples without advantage add nothing."""
        conditioning = self.embed(rollout.batch.prompts, self.device)
        state, next_state = (rollout.states[index].to(self.device).float() for index in (step, step + 1))
        advantages, old_log_prob = rollout.advantages.to(self.device), rollout.log_probs[row].to(self.device)
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
        self.log("policy/ratio_deviation", deviation.max(), on_step=True, reduce_fx="max")
        self.log("policy/clipped", (deviation > self.policy.clip_range).float().mean())
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

    def final_step_loss(self, rollout: Rollout, indices: list[int], guidance_scale: float) -> Tensor:
        """AC-DMD and reward back-propagation at the last step, the mean over the micro-batch's samples `indices`."""
        batch = rollout.batch.at(indices)
        conditioning = self.embed(batch.prompts, self.device)
        state = rollout.states[-2][indices].to(self.device).float()
        sigma = self.sigmas[-2]
        velocity = self.velocity(GENERATOR, state, sigma, conditioning)
        sample = clean_from_velocity(state, velocity, sigma=sigma)
        loss = torch.zeros((), device=self.device)
        if self.final_step.matching_weight:
            step = ExecutedStep(sigma, 0.0, state, velocity, torch.zeros_like(state), sample)
            random = self.random_of(batch)
            matching = self.generator_matching_loss(step, conditioning, random, guidance_scale, "generator update")
            self.log("final_step/matching_loss", matching.detach())
            loss = loss + self.final_step.matching_weight * matching
        if self.final_step.reward_weight:
            hinge = reward_hinge_loss(self.differentiable_reward(sample, batch), ceiling=self.final_step.reward_ceiling)
            self.log("final_step/reward_loss", hinge.detach())
            loss = loss + self.final_step.reward_weight * hinge
        return loss

    def differentiable_reward(self, samples: Tensor, batch: PromptBatch) -> Tensor:
        """`Σ_i w_i·r_i` of the decoded samples, `[B]`, with gradient; decoder and rewards run again in the backward pass."""

        def reward(latents: Tensor, part: PromptBatch) -> Tensor:
            with torch.autocast(self.device.type, enabled=False):
                return self.rewards.differentiable_sum(self.images(latents), part.prompts, part.metadata)

        size = self.final_step.decode_chunk
        chunks = [slice(start, start + size) for start in range(0, len(samples), size)]
        return torch.cat([checkpoint(reward, samples[c], batch[c], use_reentrant=False) for c in chunks])

    def images(self, latents: Tensor) -> Tensor:
        return self.backbone.decode(latents).clamp(0, 1)
