"""Flow-GRPO's stochastic step (arXiv 2505.05470): the ODE's marginals, with noise put back in."""

import torch
from torch import Tensor

from rtdmd_lightning.method.flow import at_least_float32, broadcast_sigma


def sde_mean_std(
    sample: Tensor,
    velocity: Tensor,
    *,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    eta: float,
    largest: float,
) -> tuple[Tensor, Tensor]:
    """`mean = x + [v + s²/(2σ)·(x + (1-σ)·v)]·Δ` and `std = s·sqrt(-Δ)`, with `Δ = σ' - σ` and `s = η·sqrt(σ/(1-σ))`.

    `sample` and `velocity` `[B, ...]`, levels in (0, 1], η at least 0; η = 0 is the Euler step. At σ = 1, where s is infinite,
    `1 - σ` in it is taken at the level `largest`, the schedule's second. Equation 9 of the paper, with `-Δ` for its dt.
    A baseline beside the method's own sampler (METHOD section 1).
    """
    level, below = broadcast_sigma(sigma, sample), broadcast_sigma(sigma_next, sample)
    change = below - level
    distance = torch.where(level == 1, 1 - largest, 1 - level)
    strength = eta * (level / distance).sqrt()
    x, v = at_least_float32(sample), at_least_float32(velocity)
    drift = v + strength**2 / (2 * level) * (x + (1 - level) * v)
    return x + drift * change, strength * (-change).sqrt()
