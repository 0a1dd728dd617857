"""AC-DMD's two losses: what the fake score learns, and the generator's pull towards the teacher (METHOD section 3)."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rtdmd_lightning.data.embeddings import PromptEmbedder
from rtdmd_lightning.losses.settings import MatchingSettings
from rtdmd_lightning.losses.terms import Term, Terms
from rtdmd_lightning.objectives import (
    ambient_velocity_target,
    clean_from_velocity,
    consistency_loss,
    consistency_target_level,
    distribution_matching_loss,
    fake_score_loss,
    flow_matching_loss,
    logit_normal,
    noise_free_pair,
    posterior_step,
    rao_blackwell_velocity_target,
    renoise,
    renoise_level,
    table_level,
)
from rtdmd_lightning.roles.roles import FAKE_SCORE, TEACHER, Roles
from rtdmd_lightning.sampling.sampler import Sampler
from rtdmd_lightning.sampling.structures import Conditioning, ExecutedStep, Subinterval
from rtdmd_lightning.utils.randomness import SampleRandom

TABLE_RANGE = (20, 980)
"""Entries of the training table that DMD2's generator loss draws from."""


def renoise_draws(purpose: str, how: str, shape: Sequence[int]) -> tuple[dict[str, Sequence[int]], list[str]]:
    """What `renoise_from` draws: shapes of normal draws by their purpose, and the purposes of uniform ones."""
    noise = {f"{purpose} noise": shape}
    level = f"{purpose} level"
    return (noise | {level: ()}, []) if how == "logit_normal" else (noise, [level])


def renoise_from(
    start: Tensor, sigma_start: float, random: SampleRandom, purpose: str, how: str, table_shift: float
) -> Subinterval:
    """Samples brought up to levels that are drawn as `RenoiseSettings` has it (METHOD section 3.1); `purpose` keys the draws."""
    if how == "logit_normal":
        level = table_level(logit_normal(random.normal(f"{purpose} level", ())), shift=table_shift)
    elif how == "uniform":
        level = table_level(random.uniform(f"{purpose} level"), shift=table_shift, clamp=TABLE_RANGE)
    else:
        level = renoise_level(random.uniform(f"{purpose} level"), sigma_start=sigma_start)
    noise = random.normal(f"{purpose} noise", start.shape[1:])
    end = renoise(start, sigma_start=sigma_start, sigma_end=level, noise=noise)
    return Subinterval(start, sigma_start, end, level, noise)


class FakeScoreLoss:
    """What the fake score learns of the samples that a step reached (METHOD section 3.2): `ambient` and `consistency`."""

    needs = (FAKE_SCORE,)

    def __init__(self, roles: Roles, sampler: Sampler, settings: MatchingSettings) -> None:
        self.roles, self.sampler, self.settings = roles, sampler, settings
        consistency = settings.consistency
        if consistency.weight and consistency.samples == 2 and consistency.transition == "cps" and sampler.eta == 0:
            rank_zero_warn(
                "with eta 0 the two consistency transitions coincide: the estimator is the biased one-sample form"
            )

    def __call__(self, step: ExecutedStep, conditioning: Conditioning, random: SampleRandom, purpose: str) -> Terms:
        """Of one step of B samples; `purpose` tells apart the noises of a sample's several updates."""
        settings = self.settings
        sigma = step.sigma_next if settings.sub_interval else 0.0
        start = step.next_state if settings.sub_interval else step.clean
        shift = self.roles.backbone.table_shift
        random = self.drawn_ahead(random, purpose, start.shape[1:])
        interval = renoise_from(start, sigma, random, purpose, settings.renoise.fake_score, shift)
        velocity = self.roles.velocity(FAKE_SCORE, interval.end, interval.sigma_end, conditioning)
        target = self.target(step, interval)
        if settings.fake_weight == "unit":
            loss = flow_matching_loss(velocity, target)
        else:
            loss = fake_score_loss(velocity, target, sigma_start=sigma, sigma_end=interval.sigma_end)
        terms = {"ambient": Term(loss)}
        if settings.consistency.weight:
            value = self.consistency(interval, velocity, conditioning, random, purpose)
            terms["consistency"] = Term(value, settings.consistency.weight)
        return terms

    def drawn_ahead(self, random: SampleRandom, purpose: str, shape: Sequence[int]) -> SampleRandom:
        """With all that an update draws."""
        normals, uniforms = renoise_draws(purpose, self.settings.renoise.fake_score, shape)
        consistency = self.settings.consistency
        for move in range(consistency.moves if consistency.weight else 0):
            normals |= {f"{purpose} move {move} branch {branch}": shape for branch in range(consistency.samples)}
            uniforms += [f"{purpose} delta {move}"]
        return random.ahead(normals, uniforms)

    def target(self, step: ExecutedStep, interval: Subinterval) -> Tensor:
        levels: dict[str, Any] = {"sigma_start": interval.sigma_start, "sigma_end": interval.sigma_end}
        if self.settings.fake_target == "ambient":
            return ambient_velocity_target(interval.start, **levels, noise=interval.noise)
        _, std = self.sampler.mean_std(step.state, step.velocity, sigma=step.sigma, sigma_next=interval.sigma_start)
        return rao_blackwell_velocity_target(
            interval.end, **levels, step_std=std, step_noise=step.noise, noise=interval.noise
        )

    def consistency(
        self, interval: Subinterval, velocity: Tensor, conditioning: Conditioning, random: SampleRandom, purpose: str
    ) -> Tensor:
        """`L_cons`: the branches move independently from (x_t, t) to the same t', in one batched forward pass."""
        settings = self.settings.consistency
        branches = settings.samples
        states, predicted = torch.cat([interval.end] * branches), torch.cat([velocity.detach()] * branches)
        level, conditioning = interval.sigma_end, Conditioning.cat([conditioning] * branches)
        for move in range(settings.moves):
            if move:
                with torch.no_grad():
                    predicted = self.roles.velocity(FAKE_SCORE, states, level.repeat(branches), conditioning)
            delta = 1 + torch.floor(settings.max_delta * random.uniform(f"{purpose} delta {move}"))
            next_level = consistency_target_level(delta, sigma=level)
            shape = states.shape[1:]
            noises = [random.normal(f"{purpose} move {move} branch {branch}", shape) for branch in range(branches)]
            transition = posterior_step if settings.transition == "posterior" else self.sampler.step
            states = transition(
                states,
                predicted,
                sigma=level.repeat(branches),
                sigma_next=next_level.repeat(branches),
                noise=torch.cat(noises),
            )
            level = next_level
        after = self.roles.velocity(FAKE_SCORE, states, level.repeat(branches), conditioning)
        clean = clean_from_velocity(interval.end, velocity, sigma=interval.sigma_end)
        moved = clean_from_velocity(states, after, sigma=level.repeat(branches)).chunk(branches)
        return consistency_loss(clean, moved[0], moved[-1])


class MatchingLoss:
    """The pull of a step's result, which carries the gradient, towards the teacher (METHOD section 3.3): `matching`.

    `weight` is the term's; `embed` is asked for the empty prompt, which classifier-free guidance needs.
    """

    needs = (FAKE_SCORE, TEACHER)

    def __init__(
        self,
        roles: Roles,
        sampler: Sampler,
        settings: MatchingSettings,
        embed: PromptEmbedder,
        weight: float = 1.0,
    ) -> None:
        self.roles, self.sampler, self.settings, self.embed, self.weight = roles, sampler, settings, embed, weight

    def __call__(
        self,
        step: ExecutedStep,
        conditioning: Conditioning,
        random: SampleRandom,
        guidance_scale: float,
        purpose: str = "generator update",
    ) -> Terms:
        """Of one step of B samples; `purpose` keys the noise."""
        settings = self.settings
        sigma = step.sigma_next if settings.sub_interval else 0.0
        start = step.next_state if settings.sub_interval else step.clean
        shift = self.roles.backbone.table_shift
        normals, uniforms = renoise_draws(purpose, settings.renoise.generator, start.shape[1:])
        random = random.ahead(normals | {f"{purpose} return": start.shape[1:]}, uniforms)
        interval = renoise_from(start.detach(), sigma, random, purpose, settings.renoise.generator, shift)
        x_t, level = interval.end, interval.sigma_end
        empty = self.embed([""], x_t.device)
        teacher = self.roles.teacher_velocity(x_t, level, conditioning, empty, guidance_scale)
        with torch.no_grad():
            fake = self.roles.velocity(FAKE_SCORE, x_t, level, conditioning)
        noise = random.normal(f"{purpose} return", start.shape[1:])
        from_teacher, from_fake = (
            self.sampler.step(x_t, velocity, sigma=level, sigma_next=sigma, noise=noise) for velocity in (teacher, fake)
        )
        pair = None
        if settings.normalizer == "noise_free":
            pair = noise_free_pair(step.clean, clean_from_velocity(x_t, teacher, sigma=level), sigma=sigma)
        loss = distribution_matching_loss(start, from_fake, from_teacher, normalizer=pair)
        return {"matching": Term(loss, self.weight)}
