"""The few-step sampler: the levels that it visits, its stochastic step, and how probable a step was."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from rtdmd_lightning.method.cps import cps_mean_std
from rtdmd_lightning.method.flow import at_least_float32
from rtdmd_lightning.method.gaussian_step import step_log_prob
from rtdmd_lightning.method.sde import sde_mean_std
from rtdmd_lightning.sampling.structures import Trajectory
from rtdmd_lightning.utils.errors import UserError

VelocityFunction = Callable[[Tensor, float], Tensor]
"""Latents `[B, ...]` at a level in [0, 1] to their velocity, of the same shape."""

StepNoise = Callable[[int], Tensor]
"""The fresh noise of step k, of the latents' shape."""


class Sampler(ABC):
    """Steps down a schedule; each is a Gaussian around its mean.

    Args:
        sigmas: the levels, falling; a schedule that ends with 0 ends with clean samples.
        eta: stochasticity in [0, 1]; 0 is the deterministic Euler step.
    """

    def __init__(self, sigmas: Sequence[float], eta: float) -> None:
        self.sigmas = tuple(sigmas)
        self.eta = eta

    @property
    def steps(self) -> int:
        """How many steps go from the first level to the last."""
        return len(self.sigmas) - 1

    def with_eta(self, eta: float) -> "Sampler":
        """The same sampler with another stochasticity."""
        return type(self)(self.sigmas, eta)

    @abstractmethod
    def mean_std(
        self, sample: Tensor, velocity: Tensor, *, sigma: Tensor | float, sigma_next: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the step between any two levels, numbers or `[B]`."""

    def step(
        self,
        sample: Tensor,
        velocity: Tensor,
        *,
        sigma: Tensor | float,
        sigma_next: Tensor | float,
        noise: Tensor,
    ) -> Tensor:
        """`mean + std·z`, `[B, ...]` float32."""
        mean, std = self.mean_std(sample, velocity, sigma=sigma, sigma_next=sigma_next)
        return mean + std * at_least_float32(noise)

    def step_mean_std(self, number: int, state: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Of step `number` of the schedule, from 0."""
        return self.mean_std(state, velocity, sigma=self.sigmas[number], sigma_next=self.sigmas[number + 1])

    def log_prob(
        self, number: int, state: Tensor, velocity: Tensor, next_state: Tensor, *, exact: bool = False
    ) -> Tensor:
        """How probable step `number` was, `[B]`; see `step_log_prob`."""
        mean, std = self.step_mean_std(number, state, velocity)
        return step_log_prob(next_state, mean, std, exact=exact)

    def rollout(
        self,
        velocity: VelocityFunction,
        start: Tensor,
        *,
        step_noise: StepNoise,
        steps: int | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> Trajectory:
        """The first `steps` steps (all by default) from `start`, which sits at the first level; one velocity call per step.

        With `state_dtype` every state is rounded to it on the way, so that storing it so loses nothing of the trajectory.
        """

        def rounded(state: Tensor) -> Tensor:
            return state if state_dtype is None else state.to(state_dtype).to(state.dtype)

        sigmas = self.sigmas if steps is None else self.sigmas[: steps + 1]
        states, velocities, noises = [rounded(start)], [], []
        for number, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            velocities.append(velocity(states[-1], sigma))
            noises.append(step_noise(number))
            reached = self.step(states[-1], velocities[-1], sigma=sigma, sigma_next=sigma_next, noise=noises[-1])
            states.append(rounded(reached))
        return Trajectory(sigmas, tuple(states), tuple(velocities), tuple(noises))


class CPSSampler(Sampler):
    """Coefficients-preserving sampling (METHOD section 1): the paper's."""

    def mean_std(
        self, sample: Tensor, velocity: Tensor, *, sigma: Tensor | float, sigma_next: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        return cps_mean_std(sample, velocity, sigma=sigma, sigma_next=sigma_next, eta=self.eta)


class SDESampler(Sampler):
    """Flow-GRPO's stochastic differential equation (arXiv 2505.05470), for a baseline."""

    def mean_std(
        self, sample: Tensor, velocity: Tensor, *, sigma: Tensor | float, sigma_next: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        return sde_mean_std(sample, velocity, sigma=sigma, sigma_next=sigma_next, eta=self.eta, largest=self.sigmas[1])


@dataclass(frozen=True)
class SamplerSettings:
    """The few-step sampler.

    Args:
        steps: raw timesteps, shifted by the backbone's own schedule.
        eta: stochasticity of the rollouts that are trained on.
        draw_eta: of the images that are evaluated, and what a model card recommends; by default eta too, as METHOD has it.
    """

    steps: list[int] = field(default_factory=lambda: [1000, 750, 500, 250])
    eta: float = 0.9
    draw_eta: float | None = None

    def __post_init__(self) -> None:
        check_steps(self.steps, "model.sampler.steps")
        check_eta(self.eta, "model.sampler.eta")
        if self.draw_eta is not None:
            check_eta(self.draw_eta, "model.sampler.draw_eta")

    @property
    def eta_of_images(self) -> float:
        return self.eta if self.draw_eta is None else self.draw_eta


SAMPLERS: dict[str, type[Sampler]] = {"cps": CPSSampler, "sde": SDESampler}
SamplerName = Literal["cps", "sde"]


def check_steps(steps: Sequence[float], name: str) -> None:
    """Raise UserError, which calls them `name`, for raw timesteps that do not fall strictly within (0, 1000]."""
    if not steps or sorted(set(steps), reverse=True) != list(steps) or not 0 < steps[-1] <= steps[0] <= 1000:
        raise UserError(f"{name} must fall strictly from at most 1000 and stay above 0, not {list(steps)}")


def check_eta(eta: float, name: str) -> None:
    """Raise UserError, which calls it `name`, for a stochasticity outside of [0, 1]."""
    if not 0 <= eta <= 1:
        raise UserError(f"{name} must lie in [0, 1], not {eta}")
