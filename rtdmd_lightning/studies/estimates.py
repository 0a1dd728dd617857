"""What can be said of an estimator from independent draws `[U, D]` of it: its mean's error, its variance, its direction."""

from itertools import combinations
from typing import NamedTuple

import torch
from scipy.stats import chi2
from torch import Tensor

from rtdmd_lightning.studies.linear_gaussian import LinearGaussian


class Measured(NamedTuple):
    """A measured number and its standard error."""

    value: float
    error: float


class MeanTest(NamedTuple):
    """How far a mean lies from the truth, squared and in units of its own spread, and how far chance would take it."""

    distance: float
    bound: float


def mean_test(draws: Tensor, truth: Tensor, *, confidence: float = 0.999) -> MeanTest:
    """`n·dᵀ·Cov⁻¹·d` of the mean's deviation d, all D components at once; for an unbiased estimator it is chi-square(D)."""
    deviation = draws.mean(dim=0) - truth
    distance = len(draws) * deviation @ torch.linalg.solve(torch.cov(draws.T), deviation)
    return MeanTest(distance.item(), float(chi2.ppf(confidence, df=draws.shape[1])))


def total_variance(draws: Tensor) -> Measured:
    """The trace of the covariance: the expected squared distance of a draw from the mean."""
    squares = (draws - draws.mean(dim=0)).square().sum(dim=1)
    return Measured(squares.mean().item(), (squares.std() / len(squares) ** 0.5).item())


def variance_ratio(draws: Tensor, reference: Tensor) -> Measured:
    """The total variance over that of the reference; the two are independent."""
    above, below = total_variance(draws), total_variance(reference)
    ratio = above.value / below.value
    return Measured(ratio, ratio * ((above.error / above.value) ** 2 + (below.error / below.value) ** 2) ** 0.5)


class Direction(NamedTuple):
    """An estimator whatever its scale, as an optimizer with normalised steps sees it.

    `bias_cosine` is the cosine between its mean and the truth, `draw_cosine` the mean cosine between a single draw and the
    truth, `relative_variance` the total variance over the squared length of the mean.
    """

    bias_cosine: float
    draw_cosine: float
    relative_variance: float


def direction(draws: Tensor, truth: Tensor) -> Direction:
    mean = draws.mean(dim=0)
    return Direction(
        torch.cosine_similarity(mean, truth, dim=0).item(),
        torch.cosine_similarity(draws, truth[None]).mean().item(),
        total_variance(draws).value / mean.square().sum().item(),
    )


def selection_means(problem: LinearGaussian, count: int) -> dict[tuple[int, ...], Tensor]:
    """The exact mean of the textbook hybrid gradient for each choice of `count` stochastic steps."""
    *stochastic, last = problem.step_gradients()
    factor = len(stochastic) / count
    return {
        chosen: factor * torch.stack([stochastic[step] for step in chosen]).sum(dim=0) + last
        for chosen in combinations(range(len(stochastic)), count)
    }


def selection_variance(problem: LinearGaussian, count: int) -> float:
    """The part of the total variance that choosing the steps alone makes; no number of prompts or samples averages it out."""
    means = torch.stack(list(selection_means(problem, count).values()))
    return (means - means.mean(dim=0)).square().sum(dim=1).mean().item()


def forward_passes(problem: LinearGaussian, selected_count: int) -> int:
    """Of the network, per sample and update: one for each step of the rollout, one for each trained step and the last."""
    return len(problem.steps) + selected_count + 1
