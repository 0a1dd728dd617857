"""Coefficients-preserving sampling (CPS, arXiv 2509.05952): the student's stochastic step and its log-probability."""

import math

import torch
from torch import Tensor

from rtdmd_lightning.method.flow import at_least_float32, broadcast_sigma, clean_from_velocity, noise_from_velocity
from rtdmd_lightning.method.gaussian_step import step_log_prob


def fresh_noise_share(eta: float) -> float:
    """`sin(ηπ/2)`, in [0, 1]: the share of fresh noise in a CPS step, whose std is σ' times this (METHOD section 1)."""
    return math.sin(eta * math.pi / 2)


def cps_mean_std(
    sample: Tensor, velocity: Tensor, *, sigma: Tensor | float, sigma_next: Tensor | float, eta: float
) -> tuple[Tensor, Tensor]:
    """`mean = (1-σ')·x̂0 + σ'·cos(ηπ/2)·ε̂` and `std = σ'·sin(ηπ/2)` (METHOD section 1).

    `sample` and `velocity` `[B, ...]`, levels in [0, 1], η in [0, 1]. η = 0 is the Euler step, η = 1 renoises x̂0; at σ' = 0
    the mean is x̂0 exactly and the std 0. The mean has the sample's shape, the std broadcasts against it.
    """
    level = broadcast_sigma(sigma_next, sample)
    clean = clean_from_velocity(sample, velocity, sigma=sigma)
    noise = noise_from_velocity(sample, velocity, sigma=sigma)
    mean = (1 - level) * clean + level * math.cos(eta * math.pi / 2) * noise
    return mean, level * fresh_noise_share(eta)


def cps_step(
    sample: Tensor,
    velocity: Tensor,
    *,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    eta: float,
    noise: Tensor,
) -> Tensor:
    """`x_σ' = mean + std·z` (METHOD section 1); `noise` is z, of the sample's shape. The last step (σ' = 0) ignores it."""
    mean, std = cps_mean_std(sample, velocity, sigma=sigma, sigma_next=sigma_next, eta=eta)
    return mean + std * at_least_float32(noise)


def cps_log_prob(
    sample: Tensor,
    velocity: Tensor,
    next_sample: Tensor,
    *,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    eta: float,
    exact: bool = False,
) -> Tensor:
    """The step's `step_log_prob`, `[B]`: of reaching `next_sample` from `sample` (METHOD section 1)."""
    mean, std = cps_mean_std(sample, velocity, sigma=sigma, sigma_next=sigma_next, eta=eta)
    return step_log_prob(next_sample, mean, std, exact=exact)


def posterior_step(
    sample: Tensor, velocity: Tensor, *, sigma: Tensor | float, sigma_next: Tensor | float, noise: Tensor
) -> Tensor:
    """`x' = (1-t')·x̂0 + t'·(ρ·ε̂ + sqrt(1-ρ²)·z)` with `ρ = t'(1-t)/(t(1-t'))` (METHOD section 3.2, *ours*).

    The Gaussian bridge of the forward process with x̂0 for x0: exact in the mean, and in law as t' → t.
    Levels with 0 <= t' <= t and t > 0; t' = 0 gives x̂0.
    """
    level, next_level = broadcast_sigma(sigma, sample), broadcast_sigma(sigma_next, sample)
    # At t' = t = 1 the ratio is 0/0 and the sample should stay, hence ρ = 1.
    rho = torch.where(next_level == level, 1.0, next_level * (1 - level) / (level * (1 - next_level)))
    clean = clean_from_velocity(sample, velocity, sigma=sigma)
    predicted_noise = noise_from_velocity(sample, velocity, sigma=sigma)
    mixed = rho * predicted_noise + (1 - rho**2).clamp_min(0).sqrt() * at_least_float32(noise)
    return (1 - next_level) * clean + next_level * mixed
