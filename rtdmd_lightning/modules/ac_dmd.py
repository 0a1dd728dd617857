"""Stage 1, AC-DMD: the cold start that turns a many-step teacher with CFG into a few-step generator without (METHOD section 3).

One training step is one cycle: `fake_update_ratio` fake-score updates, then one generator update. Within a cycle the
generator's weights do not change, so with `reuse_rollouts` whole trajectories are rolled out once, in one large batch without
gradient, and each of their four boundaries serves a fake-score update.

Forward passes, in samples of the transformer (B = batch_size, K = sampler steps, R = fake_update_ratio):

* rollouts of a cycle: ceil(R/K)*K*B with `reuse_rollouts`; else k*B per fake update and (k-1)*B for the generator's, where k
  is the random stop;
* a fake-score update: B, and 2B more in one pass for the two-sample consistency (B for the one-sample form; each chained
  move beyond the first costs as much again);
* the generator update: B with gradient, 2B for the teacher with CFG (B at scale 1), B for the fake score.

`tests/modules/test_forward_counts.py` counts them.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.errors import UserError
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.core import FAKE_SCORE, GENERATOR, DistillationModule
from rtdmd_lightning.modules.settings import Consistency
from rtdmd_lightning.objectives import (
    ambient_velocity_target,
    clean_from_velocity,
    consistency_loss,
    consistency_target_level,
    cps_step,
    distribution_matching_loss,
    fake_score_loss,
    fresh_noise_share,
    noise_free_pair,
    posterior_step,
    rao_blackwell_velocity_target,
    renoise,
    renoise_level,
)
from rtdmd_lightning.randomness import SampleRandom, keyed_generator
from rtdmd_lightning.structures import Conditioning, Subinterval, Trajectory


@dataclass(frozen=True)
class Update:
    """Which group of a cycle's samples an update uses, and after how many executed steps (1 to K) its rollout stops."""

    group: int
    stop: int


class ACDMDModule(DistillationModule):
    """AC-DMD. Every ablation is one option.

    Args:
        guidance_scale: the teacher's CFG range; one value per generator update, the same on all ranks.
        fake_update_ratio: fake-score updates per generator update (TTUR).
        random_stop: stop the rollout after a random number of steps; without it, always after the last.
        sub_interval: renoise from the level where the rollout stopped; without it, from the clean prediction. Off together
            with the consistency regulariser, this is DMD2.
        consistency: the fake score's regulariser.
        fake_target: `ambient` (the paper's) or `rao_blackwell` (same conditional mean, smaller variance).
        normalizer: of the generator's gradient: `paper`, or `noise_free` (only the clean predictions enter).
        reuse_rollouts: one batch of whole trajectories per cycle instead of one random-stop rollout per update.
        backbone, batch_size, shared: see `DistillationModule` (the command line lists its options here too).
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        guidance_scale: tuple[float, float],
        fake_update_ratio: int = 10,
        random_stop: bool = True,
        sub_interval: bool = True,
        consistency: Consistency = Consistency(),
        fake_target: Literal["ambient", "rao_blackwell"] = "ambient",
        normalizer: Literal["paper", "noise_free"] = "paper",
        reuse_rollouts: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(backbone, batch_size, **shared)
        if not 1 <= guidance_scale[0] <= guidance_scale[1]:
            raise UserError(f"model.guidance_scale must be a range of scales from 1 up, not {list(guidance_scale)}")
        if fake_update_ratio < 1:
            raise UserError(f"model.fake_update_ratio must be at least 1, not {fake_update_ratio}")
        if (
            consistency.weight
            and consistency.samples == 2
            and consistency.transition == "cps"
            and self.sampler.eta == 0
        ):
            rank_zero_warn(
                "with eta 0 the two consistency transitions coincide: the estimator is the biased one-sample form"
            )
        self.guidance_scale = guidance_scale
        self.fake_update_ratio = fake_update_ratio
        self.random_stop = random_stop
        self.sub_interval = sub_interval
        self.consistency = consistency
        self.fake_target = fake_target
        self.normalizer = normalizer
        self.reuse_rollouts = reuse_rollouts

    # The cycle --------------------------------------------------------------------------------------------------------

    @property
    def shares_trajectories(self) -> bool:
        """Are whole trajectories rolled out once per cycle? Without a random stop only their last boundary would serve."""
        return self.reuse_rollouts and self.random_stop

    @property
    def groups_per_step(self) -> int:
        """With reuse, K updates share a group, and the generator's update takes one of them too; else each has its own."""
        if self.shares_trajectories:
            return math.ceil(self.fake_update_ratio / len(self.sampler.steps))
        return self.fake_update_ratio + 1

    def plan(self, cycle: int) -> tuple[list[Update], Update]:
        """The fake-score updates of a cycle and its generator update: a function of (seed, cycle), so the same on all ranks."""
        generator = keyed_generator(self.seed, cycle, "plan")
        stops, groups, ratio = len(self.sampler.steps), self.groups_per_step, self.fake_update_ratio

        def draw(bound: int) -> int:
            return int(torch.randint(bound, (), generator=generator))

        if self.shares_trajectories:
            order = torch.randperm(groups * stops, generator=generator).tolist()[:ratio]
            fake_updates = [Update(index // stops, index % stops + 1) for index in order]
            return fake_updates, Update(draw(groups), draw(stops) + 1)
        updates = [Update(group, draw(stops) + 1 if self.random_stop else stops) for group in range(groups)]
        return updates[:ratio], updates[ratio]

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        cycle = self.global_step
        fake_updates, generator_update = self.plan(cycle)
        random = SampleRandom(self.seed, batch.indices, self.device)
        conditioning = self.embed(batch.prompts, self.device)
        local = len(batch.prompts) // self.groups_per_step
        groups = [slice(start, start + local) for start in range(0, len(batch.prompts), local)]

        shared: Trajectory | None = None
        if self.shares_trajectories:
            with self.timed("rollout"):
                shared = self.roll_out(GENERATOR, conditioning, random)
        with self.timed("fake_updates"):
            for number, update in enumerate(fake_updates):
                group = groups[update.group]
                trajectory = (
                    shared[group]
                    if shared
                    else self.roll_out(GENERATOR, conditioning[group], random[group], update.stop)
                )
                loss = self.fake_score_loss(trajectory, update.stop, conditioning[group], random[group], number)
                self.log_update(FAKE_SCORE, update.stop, loss, self.update(FAKE_SCORE, loss))
        with self.timed("generator_update"):
            group, stop = groups[generator_update.group], generator_update.stop
            trajectory = (
                shared[group] if shared else self.roll_out(GENERATOR, conditioning[group], random[group], stop - 1)
            )
            loss = self.generator_loss(trajectory, stop, conditioning[group], random[group], self.draw_guidance(cycle))
            self.log_update(GENERATOR, stop, loss, self.update(GENERATOR, loss))
        self.update_ema()

    def draw_guidance(self, cycle: int) -> float:
        low, high = self.guidance_scale
        return low + (high - low) * float(torch.rand((), generator=keyed_generator(self.seed, cycle, "guidance")))

    def log_update(self, role: str, stop: int, loss: Tensor, norm: Tensor) -> None:
        """Losses and gradient norms differ by orders of magnitude between segments, so each segment has its own curves."""
        self.log_dict({f"{role}/loss_segment_{stop}": loss.detach(), f"{role}/grad_norm_segment_{stop}": norm})

    # The losses -------------------------------------------------------------------------------------------------------

    def renoise_from(self, start: Tensor, sigma_start: float, random: SampleRandom, purpose: str) -> Subinterval:
        """METHOD section 3.1."""
        level = renoise_level(random.uniform(f"{purpose} level"), sigma_start=sigma_start)
        noise = random.normal(f"{purpose} noise", start.shape[1:])
        end = renoise(start, sigma_start=sigma_start, sigma_end=level, noise=noise)
        return Subinterval(start, sigma_start, end, level, noise)

    def fake_score_loss(
        self, trajectory: Trajectory, stop: int, conditioning: Conditioning, random: SampleRandom, number: int
    ) -> Tensor:
        """METHOD section 3.2 at the boundary that `stop` steps reach; `number` tells a cycle's updates apart."""
        purpose = f"fake update {number}"
        sigma = self.sigmas[stop] if self.sub_interval else 0.0
        start = trajectory.states[stop]
        if not self.sub_interval:
            last = stop - 1
            start = clean_from_velocity(
                trajectory.states[last], trajectory.velocities[last], sigma=trajectory.sigmas[last]
            )
        interval = self.renoise_from(start, sigma, random, purpose)
        velocity = self.velocity(FAKE_SCORE, interval.end, interval.sigma_end, conditioning)
        if self.fake_target == "ambient":
            target = ambient_velocity_target(
                start, sigma_start=sigma, sigma_end=interval.sigma_end, noise=interval.noise
            )
        else:
            target = rao_blackwell_velocity_target(
                interval.end,
                sigma_start=sigma,
                sigma_end=interval.sigma_end,
                step_std=sigma * fresh_noise_share(self.sampler.eta),
                step_noise=trajectory.noises[stop - 1],
                noise=interval.noise,
            )
        loss = fake_score_loss(velocity, target, sigma_start=sigma, sigma_end=interval.sigma_end)
        if not self.consistency.weight:
            return loss
        return loss + self.consistency.weight * self.consistency_regulariser(
            interval, velocity, conditioning, random, purpose
        )

    def consistency_regulariser(
        self, interval: Subinterval, velocity: Tensor, conditioning: Conditioning, random: SampleRandom, purpose: str
    ) -> Tensor:
        """`L_cons`: the branches move independently from (x_t, t) to the same t', in one batched forward pass."""
        branches = self.consistency.samples
        states, predicted = torch.cat([interval.end] * branches), torch.cat([velocity.detach()] * branches)
        level, conditioning = interval.sigma_end, Conditioning.cat([conditioning] * branches)
        for move in range(self.consistency.moves):
            if move:
                with torch.no_grad():
                    predicted = self.velocity(FAKE_SCORE, states, level.repeat(branches), conditioning)
            delta = 1 + torch.floor(self.consistency.max_delta * random.uniform(f"{purpose} delta {move}"))
            next_level = consistency_target_level(delta, sigma=level)
            noises = [
                random.normal(f"{purpose} move {move} branch {branch}", states.shape[1:]) for branch in range(branches)
            ]
            states = self.transition(states, predicted, level.repeat(branches), next_level.repeat(branches), noises)
            level = next_level
        after = self.velocity(FAKE_SCORE, states, level.repeat(branches), conditioning)
        clean = clean_from_velocity(interval.end, velocity, sigma=interval.sigma_end)
        moved = clean_from_velocity(states, after, sigma=level.repeat(branches)).chunk(branches)
        return consistency_loss(clean, moved[0], moved[-1])

    def transition(
        self, states: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noises: list[Tensor]
    ) -> Tensor:
        noise = torch.cat(noises)
        if self.consistency.transition == "posterior":
            return posterior_step(states, velocity, sigma=sigma, sigma_next=sigma_next, noise=noise)
        return cps_step(states, velocity, sigma=sigma, sigma_next=sigma_next, eta=self.sampler.eta, noise=noise)

    def generator_loss(
        self, trajectory: Trajectory, stop: int, conditioning: Conditioning, random: SampleRandom, guidance_scale: float
    ) -> Tensor:
        """METHOD section 3.3: the last executed step with gradient, then the pull towards the teacher."""
        last, eta = stop - 1, self.sampler.eta
        state, sigma = trajectory.states[last], self.sigmas[last]
        sigma_start = self.sigmas[stop] if self.sub_interval else 0.0
        velocity = self.velocity(GENERATOR, state, sigma, conditioning)
        step_noise = random.normal(f"step {last}", state.shape[1:])
        start = cps_step(state, velocity, sigma=sigma, sigma_next=sigma_start, eta=eta, noise=step_noise)
        interval = self.renoise_from(start.detach(), sigma_start, random, "generator update")
        level = interval.sigma_end
        teacher = self.teacher_velocity(interval.end, level, conditioning, guidance_scale)
        with torch.no_grad():
            fake = self.velocity(FAKE_SCORE, interval.end, level, conditioning)
        noise = random.normal("generator update return", state.shape[1:])
        from_teacher, from_fake = (
            cps_step(interval.end, v, sigma=level, sigma_next=sigma_start, eta=eta, noise=noise)
            for v in (teacher, fake)
        )
        pair = None
        if self.normalizer == "noise_free":
            pair = noise_free_pair(
                clean_from_velocity(state, velocity, sigma=sigma),
                clean_from_velocity(interval.end, teacher, sigma=level),
                sigma=sigma_start,
            )
        return distribution_matching_loss(start, from_fake, from_teacher, normalizer=pair)
