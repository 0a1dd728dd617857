"""Gaussian random variables as coefficient tensors: exact expectations of the method's linear maps, without sampling.

A variable is a `[1, K]` tensor of its coefficients on `(1, g_1, ..., g_{K-1})`, with g independent standard normals. The
method's transitions and targets are linear and act on each element alone, so handing them coefficients is feeding them
unit inputs: what comes back are the coefficients of their result. `probe` checks that the map it is given is linear.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# (s, t) pairs of sub-interval renoising: clean samples, the three boundaries of the schedule, both ends of each segment.
SEGMENTS = [(0.0, 0.02), (0.0, 0.5), (0.0, 0.98), (0.5, 0.51), (0.5, 0.8), (0.75, 0.76), (0.75, 0.9), (0.9, 0.91)]


def variables(count: int) -> list[Tensor]:
    """The constant 1 and `count` independent standard normals."""
    return list(torch.eye(count + 1, dtype=torch.float64)[:, None])


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Reproducible float64 draws."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def probe(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The coefficients of `function(*inputs)`; fails unless five realisations of the inputs give the same map."""
    result = function(*inputs)
    draws = torch.cat([torch.ones(1, 5, dtype=torch.float64), normal(result.shape[1] - 1, 5)])
    realised = function(*(variable @ draws for variable in inputs))
    torch.testing.assert_close(result @ draws, realised)
    return result


def mean(variable: Tensor) -> Tensor:
    return variable[:, 0]


def covariance(one: Tensor, other: Tensor) -> Tensor:
    return (one[:, 1:] * other[:, 1:]).sum(dim=1)


def constant(value: Tensor | float, like: Tensor) -> Tensor:
    """A number as a variable."""
    result = torch.zeros_like(like)
    result[:, 0] = value
    return result


def conditional_mean(target: Tensor, given: Tensor) -> Tensor:
    """`E[target | given]`, itself a variable; for jointly Gaussian ones it is the linear regression."""
    slope = covariance(target, given) / covariance(given, given)
    return constant(mean(target), given) + slope[:, None] * (given - constant(mean(given), given))


def conditional_variance(target: Tensor, given: Tensor) -> float:
    error = target - conditional_mean(target, given)
    return covariance(error, error).item()


@dataclass(frozen=True)
class GaussianData:
    """`x0 ~ N(mean, variance)`, for which the marginal velocity is known in closed form."""

    mean: float
    variance: float

    @classmethod
    def behind(cls, sample: Tensor, sigma: float) -> "GaussianData":
        """The clean law whose forward marginal at `sigma` is that of `sample` (its variance may be negative)."""
        spread = covariance(sample, sample).item() - sigma**2
        return cls(mean(sample).item() / (1 - sigma), spread / (1 - sigma) ** 2)

    def clean(self, one: Tensor, g: Tensor) -> Tensor:
        return self.mean * one + self.variance**0.5 * g

    def velocity(self, sample: Tensor, sigma: float, one: Tensor) -> Tensor:
        """`E[ε - x0 | x_σ]`, from `Cov(ε - x0, x_σ) = σ - (1-σ)c²` and `Var x_σ = (1-σ)²c² + σ²`."""
        slope = (sigma - (1 - sigma) * self.variance) / ((1 - sigma) ** 2 * self.variance + sigma**2)
        return slope * (sample - (1 - sigma) * self.mean * one) - self.mean * one


DATA = [GaussianData(0.7, 0.36), GaussianData(-1.5, 4.0)]
