"""The few-step rollout: CPS steps over a schedule, driven by any velocity function (METHOD sections 1 and 2)."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rtdmd_lightning.objectives import cps_step
from rtdmd_lightning.structures import Trajectory

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
