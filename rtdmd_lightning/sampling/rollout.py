"""The few-step rollout: CPS steps over a schedule, driven by any velocity function (METHOD sections 1 and 2)."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rtdmd_lightning.objectives import cps_step
from rtdmd_lightning.sampling.structures import Trajectory
from rtdmd_lightning.utils.errors import UserError

VelocityFunction = Callable[[Tensor, float], Tensor]
"""Latents `[B, ...]` at a level in [0, 1] to their velocity, of the same shape."""

StepNoise = Callable[[int], Tensor]
"""The fresh noise of step k, of the latents' shape."""


def rollout(
    velocity: VelocityFunction,
    start: Tensor,
    *,
    sigmas: Sequence[float],
    eta: float,
    step_noise: StepNoise,
    state_dtype: torch.dtype | None = None,
) -> Trajectory:
    """Execute one CPS step between each pair of neighbours in `sigmas`; one velocity call per step.

    `start` sits at `sigmas[0]`. A schedule that ends with 0 ends with clean samples; a shorter one ends at its last level.
    With `state_dtype` every state is rounded to it on the way, so that storing it so loses nothing of the trajectory.
    """

    def rounded(state: Tensor) -> Tensor:
        return state if state_dtype is None else state.to(state_dtype).to(state.dtype)

    states, velocities, noises = [rounded(start)], [], []
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        velocities.append(velocity(states[-1], sigma))
        noises.append(step_noise(step))
        reached = cps_step(states[-1], velocities[-1], sigma=sigma, sigma_next=sigma_next, eta=eta, noise=noises[-1])
        states.append(rounded(reached))
    return Trajectory(tuple(sigmas), tuple(states), tuple(velocities), tuple(noises))


def check_steps(steps: Sequence[float], name: str) -> None:
    """Raise UserError, which calls them `name`, for raw timesteps that do not fall strictly within (0, 1000]."""
    if not steps or sorted(set(steps), reverse=True) != list(steps) or not 0 < steps[-1] <= steps[0] <= 1000:
        raise UserError(f"{name} must fall strictly from at most 1000 and stay above 0, not {list(steps)}")


def check_eta(eta: float, name: str) -> None:
    """Raise UserError, which calls it `name`, for a stochasticity outside of [0, 1]."""
    if not 0 <= eta <= 1:
        raise UserError(f"{name} must lie in [0, 1], not {eta}")
