"""A stochastic sampler step is a Gaussian around its mean: its log-probability and its divergence from another one."""

import math

import torch
from torch import Tensor

from rtdmd_lightning.method.flow import at_least_float32


def step_log_prob(next_sample: Tensor, mean: Tensor, std: Tensor | float, *, exact: bool = False) -> Tensor:
    """`logp = -mean_over_pixels((x_σ' - mean)²)`, `[B]` (METHOD section 1).

    The Gaussian's `1/(2·std²)` and its normaliser are left out on purpose: all steps are then on one scale, to which the tiny
    clip range of the policy loss is tuned. `exact=True` (*ours*) is the true log density, summed over all elements;
    it raises ValueError for a deterministic step (std 0). Nothing is detached: the gradient reaches whatever carries one.
    """
    squared_error = (at_least_float32(next_sample) - mean) ** 2
    if not exact:
        return -squared_error.flatten(1).mean(dim=1)
    std = torch.as_tensor(std)
    if bool((std == 0).any()):
        raise ValueError(
            "a deterministic step (eta 0 or sigma_next 0) has no log density; leave it out of the policy loss"
        )
    log_density = -squared_error / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
    return log_density.flatten(1).sum(dim=1)


def step_kl(mean: Tensor, reference_mean: Tensor, *, std: Tensor | float, exact: bool = False) -> Tensor:
    """Divergence of two steps of equal std, `[B]`: `mean_over_pixels((mean - mean_ref)²) / (2·std²)` (METHOD section 4).

    It carries the `1/(2·std²)` that `step_log_prob` leaves out. `exact` (*ours*) is that of the two Gaussians: the sum over all
    elements, not their mean.
    """
    squared = (at_least_float32(mean) - at_least_float32(reference_mean)) ** 2
    divergence = (squared / (2 * torch.as_tensor(std) ** 2)).flatten(1)
    return divergence.sum(dim=1) if exact else divergence.mean(dim=1)
