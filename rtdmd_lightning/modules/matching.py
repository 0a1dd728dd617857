"""AC-DMD's two losses, which both stages use: what the fake score learns, and the generator's pull towards the teacher."""

from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.core import DistillationModule
from rtdmd_lightning.modules.roles import FAKE_SCORE
from rtdmd_lightning.modules.settings import Consistency, RenoiseSettings
from rtdmd_lightning.objectives import (
    ambient_velocity_target,
    clean_from_velocity,
    consistency_loss,
    consistency_target_level,
    cps_step,
    distribution_matching_loss,
    fake_score_loss,
    flow_matching_loss,
    fresh_noise_share,
    logit_normal,
    noise_free_pair,
    posterior_step,
    rao_blackwell_velocity_target,
    renoise,
    renoise_level,
    table_level,
)
from rtdmd_lightning.sampling.structures import Conditioning, ExecutedStep, Subinterval
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.randomness import SampleRandom, keyed_generator

TABLE_RANGE = (20, 980)
"""Entries of the training table that DMD2's generator loss draws from."""


class MatchingModule(DistillationModule):
    """A `DistillationModule` with the losses of METHOD section 3.

    Args:
        guidance_scale: the teacher's CFG range; one value per generator update, the same on all ranks.
        sub_interval: renoise from the level where the rollout stopped; without it, from the clean prediction. Off together
            with the consistency regulariser, this is DMD2.
        consistency: the fake score's regulariser.
        fake_target: `ambient` (the paper's) or `rao_blackwell` (same conditional mean, smaller variance).
        fake_weight: of the fake score's loss: `clamped` (the paper's), or `unit` (DMD2's).
        renoise: how the levels that samples are renoised to are drawn.
        normalizer: of the generator's gradient: `paper`, or `noise_free` (only the clean predictions enter).
        backbone, batch_size, shared: see `DistillationModule` (the command line lists its options here too).
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        guidance_scale: tuple[float, float],
        sub_interval: bool = True,
        consistency: Consistency = Consistency(),
        fake_target: Literal["ambient", "rao_blackwell"] = "ambient",
        fake_weight: Literal["clamped", "unit"] = "clamped",
        renoise: RenoiseSettings = RenoiseSettings(),
        normalizer: Literal["paper", "noise_free"] = "paper",
        **shared: Any,
    ) -> None:
        super().__init__(backbone, batch_size, **shared)
        if not 1 <= guidance_scale[0] <= guidance_scale[1]:
            raise UserError(f"model.guidance_scale must be a range of scales from 1 up, not {list(guidance_scale)}")
        if (
            consistency.weight
            and consistency.samples == 2
            and consistency.transition == "cps"
            and self.sampler.eta == 0
        ):
            rank_zero_warn(
                "with eta 0 the two consistency transitions coincide: the estimator is the biased one-sample form"
            )
        if sub_interval and not (renoise.fake_score == renoise.generator == "interval"):
            raise UserError(
                "model.renoise: only `interval` draws levels above the one where a rollout stopped; set model.sub_interval to "
                "false for the others"
            )
        self.guidance_scale = guidance_scale
        self.sub_interval = sub_interval
        self.consistency = consistency
        self.fake_target = fake_target
        self.fake_weight = fake_weight
        self.renoise = renoise
        self.normalizer = normalizer

    def draw_guidance(self, update: int) -> float:
        """The teacher's CFG scale of a generator update: a function of (seed, update), so the same on all ranks."""
        low, high = self.guidance_scale
        return low + (high - low) * float(torch.rand((), generator=keyed_generator(self.seed, update, "guidance")))

    def draw_level(self, how: str, sigma_start: float, random: SampleRandom, purpose: str) -> Tensor:
        """The levels `[B]` to renoise to, as `RenoiseSettings` has it."""
        if how == "logit_normal":
            draw = logit_normal(random.normal(purpose, ()))
            return table_level(draw, shift=self.backbone.table_shift)
        uniform = random.uniform(purpose)
        if how == "uniform":
            return table_level(uniform, shift=self.backbone.table_shift, clamp=TABLE_RANGE)
        return renoise_level(uniform, sigma_start=sigma_start)

    def renoise_from(
        self, start: Tensor, sigma_start: float, random: SampleRandom, purpose: str, how: str = "interval"
    ) -> Subinterval:
        """METHOD section 3.1."""
        level = self.draw_level(how, sigma_start, random, f"{purpose} level")
        noise = random.normal(f"{purpose} noise", start.shape[1:])
        end = renoise(start, sigma_start=sigma_start, sigma_end=level, noise=noise)
        return Subinterval(start, sigma_start, end, level, noise)

    def fake_matching_loss(
        self, step: ExecutedStep, conditioning: Conditioning, random: SampleRandom, purpose: str
    ) -> Tensor:
        """METHOD section 3.2 at the boundary that a step reached; a scalar. `purpose` keys its noise."""
        sigma = step.sigma_next if self.sub_interval else 0.0
        start = step.next_state if self.sub_interval else step.clean
        interval = self.renoise_from(start, sigma, random, purpose, self.renoise.fake_score)
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
                step_noise=step.noise,
                noise=interval.noise,
            )
        if self.fake_weight == "unit":
            loss = flow_matching_loss(velocity, target)
        else:
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

    def generator_matching_loss(
        self,
        step: ExecutedStep,
        conditioning: Conditioning,
        random: SampleRandom,
        guidance_scale: float,
        purpose: str,
    ) -> Tensor:
        """METHOD section 3.3: the pull of a step's result, which carries the gradient, towards the teacher; a scalar."""
        eta = self.sampler.eta
        sigma_start = step.sigma_next if self.sub_interval else 0.0
        start = step.next_state if self.sub_interval else step.clean
        interval = self.renoise_from(start.detach(), sigma_start, random, purpose, self.renoise.generator)
        level = interval.sigma_end
        teacher = self.teacher_velocity(interval.end, level, conditioning, guidance_scale)
        with torch.no_grad():
            fake = self.velocity(FAKE_SCORE, interval.end, level, conditioning)
        noise = random.normal(f"{purpose} return", start.shape[1:])
        from_teacher, from_fake = (
            cps_step(interval.end, v, sigma=level, sigma_next=sigma_start, eta=eta, noise=noise)
            for v in (teacher, fake)
        )
        pair = None
        if self.normalizer == "noise_free":
            pair = noise_free_pair(
                step.clean, clean_from_velocity(interval.end, teacher, sigma=level), sigma=sigma_start
            )
        return distribution_matching_loss(start, from_fake, from_teacher, normalizer=pair)
