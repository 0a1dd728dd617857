"""Stage 2's hybrid gradient on the linear-Gaussian generator: the real sampler, advantages and losses, many updates at once.

An update rolls out K samples of every prompt, explores (trains) some of the stochastic steps and adds the derivative through
the last, deterministic step. Here U independent updates run as one batch, each with its own copy of the parameters *for each
step*: one backward pass then leaves the U x steps contributions apart, and any estimator is a weighted sum of them.

Ratios are 1, as at the first (in METHOD: the only) optimizer step after a rollout. The distribution matching term of the
last step is no part of the reward's gradient and is left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rtdmd_lightning.objectives import (
    clipped_policy_loss,
    cps_log_prob,
    cps_step,
    group_advantages,
    leave_one_out_advantages,
    reward_hinge_loss,
)
from rtdmd_lightning.sampling.sampler import CPSSampler
from rtdmd_lightning.sampling.structures import Trajectory
from rtdmd_lightning.studies.linear_gaussian import LinearGaussian


@dataclass(frozen=True)
class Weights:
    """How the terms of the hybrid gradient are weighted; the defaults are the textbook's, `METHOD_WEIGHTS` the method's.

    Args:
        leave_one_out: The baseline of each sample is the mean of the others; else the group's mean, divided by the std.
        exact_log_prob: The Gaussian log density; else minus the mean squared error over the elements.
        inverse_probability: A selected step weighs one over the probability of its selection, the last step 1; else all
            executed terms are averaged with equal weight.
        last_step: Factor of the reward term of the last step.
        clip_range: Of the probability ratio.
        adv_clip_max: Of the advantages.
    """

    leave_one_out: bool = True
    exact_log_prob: bool = True
    inverse_probability: bool = True
    last_step: float = 1.0
    clip_range: float = math.inf
    adv_clip_max: float = math.inf


TEXTBOOK = Weights()
METHOD_WEIGHTS = Weights(
    leave_one_out=False,
    exact_log_prob=False,
    inverse_probability=False,
    last_step=1e-4,
    clip_range=1e-5,
    adv_clip_max=5.0,
)


@dataclass(frozen=True)
class Updates:
    """U updates: the contribution of each step to each, `terms` `[U, steps, D·(2D+1)]`, and the `selected` steps `[U, steps-1]`.

    `terms` hold the ascent direction, for the unselected steps too; weights over steps are not in them yet.
    """

    terms: Tensor
    selected: Tensor
    weights: Weights

    def gradients(self, *, last_step: bool = True, selected_only: bool = True) -> Tensor:
        """The hybrid gradient of each update, `[U, D·(2D+1)]`.

        `last_step=False` drops the last step's term, `selected_only=False` trains the unselected steps as well (a mistake).
        """
        trained = self.selected if selected_only else torch.ones_like(self.selected)
        count = trained.sum(dim=1, keepdim=True)
        steps = trained.to(self.terms.dtype)
        last = torch.full_like(steps[:, :1], float(last_step))
        if self.weights.inverse_probability:
            factors = torch.cat([steps * trained.shape[1] / count, last], dim=1)
        else:
            factors = torch.cat([steps, last], dim=1) / (count + 1)
        return (factors[..., None] * self.terms).sum(dim=1)


def select_steps(updates: int, steps: int, count: int, generator: torch.Generator) -> Tensor:
    """Which `count` of the stochastic steps each update explores, uniformly at random: bool `[updates, steps]`."""
    order = torch.rand(updates, steps, generator=generator).argsort(dim=1)
    return order.argsort(dim=1) < count


def simulate(
    problem: LinearGaussian,
    *,
    updates: int,
    group_size: int,
    selected_count: int,
    share_noise: bool = True,
    weights: Weights = TEXTBOOK,
    seed: int = 0,
) -> Updates:
    """Roll out and differentiate `updates` independent updates of `group_size` samples for each prompt.

    Full GRPO is `selected_count=3` (of the four steps' three stochastic ones), SubGRPO is 2; `share_noise` gives an unselected
    step the same noise in the whole prompt group.
    """
    generator = torch.Generator().manual_seed(seed)
    selected = select_steps(updates, len(problem.steps) - 1, selected_count, generator)
    trajectory, prompts = roll_out(problem, selected, group_size, share_noise, generator)
    names = [f"{group}" for group in range(updates * len(problem.prompts)) for _ in range(group_size)]
    reward = problem.reward(trajectory.samples, prompts)
    advantages = _advantages(reward, names, updates, weights)
    return Updates(_step_terms(problem, trajectory, prompts, advantages, updates, weights), selected, weights)


def roll_out(
    problem: LinearGaussian, selected: Tensor, group_size: int, share_noise: bool, generator: torch.Generator
) -> tuple[Trajectory, Tensor]:
    """The trajectories of all samples and their prompts, `[U·P·K, D]`, ordered by update, prompt and sample."""
    updates, (prompt_count, dim) = len(selected), problem.prompt_vectors.shape
    shape = (updates, prompt_count, group_size, dim)
    prompts = problem.prompt_vectors[:, None].expand(shape).reshape(-1, dim)

    def normal() -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def step_noise(step: int) -> Tensor:
        noise = normal()
        if share_noise and step < selected.shape[1]:
            own = selected[:, step].view(-1, 1, 1, 1)
            noise = torch.where(own, noise, noise[:, :, :1])
        return noise.reshape(-1, dim)

    def velocity(latents: Tensor, sigma: float) -> Tensor:
        return problem.velocity(problem.theta, problem.sigmas.index(sigma), latents, prompts)

    start = normal().reshape(-1, dim)
    return CPSSampler(problem.sigmas, problem.eta).rollout(velocity, start, step_noise=step_noise), prompts


def _advantages(reward: Tensor, names: Sequence[str], updates: int, weights: Weights) -> Tensor:
    if weights.leave_one_out:
        return leave_one_out_advantages(reward, names)
    size = len(names) // updates  # the std is that of one update's batch, so the updates cannot be taken together
    parts = [
        group_advantages({"reward": part}, names[index * size : (index + 1) * size], {"reward": 1.0})
        for index, part in enumerate(reward.split(size))
    ]
    return torch.cat(parts)


def _step_terms(
    problem: LinearGaussian, trajectory: Trajectory, prompts: Tensor, advantages: Tensor, updates: int, weights: Weights
) -> Tensor:
    """Minus the gradient of each step's loss with respect to that update's and step's own copy of θ."""
    dim = prompts.shape[1]
    copies = problem.theta.expand(updates, len(problem.steps), -1, -1).clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for step, (sigma, sigma_next) in enumerate(problem.steps):
        latents = trajectory.states[step]
        per_update = (tensor.view(updates, -1, dim) for tensor in (latents, prompts))
        velocity = problem.velocity(copies[:, step], step, *per_update).view(-1, dim)
        levels = {"sigma": sigma, "sigma_next": sigma_next, "eta": problem.eta}
        if sigma_next > 0:
            log_prob = cps_log_prob(
                latents, velocity, trajectory.states[step + 1], exact=weights.exact_log_prob, **levels
            )
            clips = {"clip_range": weights.clip_range, "adv_clip_max": weights.adv_clip_max}
            loss = loss + clipped_policy_loss(log_prob, log_prob.detach(), advantages, **clips)
        else:
            clean = cps_step(latents, velocity, noise=trajectory.noises[step], **levels)
            loss = loss + weights.last_step * reward_hinge_loss(problem.reward(clean, prompts))
    (gradients,) = torch.autograd.grad(loss, copies)
    return -updates * gradients.flatten(2)  # the losses are means over all updates, each update wants its own
