"""The consistency regulariser: which transitions keep the exact velocity a zero of it, with exact Gaussian expectations.

Expectations of products are exact here: on the orthonormal coefficients `(1, g_1, ...)` of `gaussian.py`, `E[XY]` is the sum
of the products, so `consistency_loss` of K coefficients is `E[...]/K`.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rtdmd_lightning import objectives
from tests.support.gaussian import (
    DATA,
    GaussianData,
    conditional_mean,
    conditional_variance,
    normal,
    probe,
    variables,
)

Transition = Callable[..., Tensor]

every_data = pytest.mark.parametrize("data", DATA, ids=str)
every_move = pytest.mark.parametrize(("level", "delta"), [(0.98, 1), (0.98, 200), (0.75, 100), (0.5, 200), (0.3, 10)])


def posterior(sample: Tensor, velocity: Tensor, **levels) -> Tensor:
    return objectives.posterior_step(sample, velocity, **levels)


def cps(eta: float) -> Transition:
    return lambda sample, velocity, **levels: objectives.cps_step(sample, velocity, eta=eta, **levels)


def target_level(level: float, delta: float) -> float:
    levels = torch.tensor([[delta], [level]], dtype=torch.float64)
    return objectives.consistency_target_level(levels[0], sigma=levels[1]).item()


def moves(data: GaussianData, level: float, lower: float, transition: Transition) -> list[Tensor]:
    """(1, x_t, x'_1, x'_2): two independent transitions from x_t, with the exact velocity."""
    one, g, old, *fresh = variables(4)
    sample = objectives.interpolate(data.clean(one, g), old, sigma=level)
    velocity = data.velocity(sample, level, one)

    def step(x: Tensor, v: Tensor, z: Tensor) -> Tensor:
        return transition(x, v, sigma=level, sigma_next=lower, noise=z)

    return [one, sample, *(probe(step, sample, velocity, noise) for noise in fresh)]


def expected_losses(data: GaussianData, level: float, delta: float, transition: Transition) -> tuple[float, float]:
    """The expectations of the two-sample and of the one-sample form, at the exact velocity."""
    lower = target_level(level, delta)
    one, *states = moves(data, level, lower, transition)
    clean, clean_1, clean_2 = (
        objectives.clean_from_velocity(x, data.velocity(x, sigma, one), sigma=sigma)
        for x, sigma in zip(states, (level, lower, lower), strict=True)
    )
    size = clean.numel()
    return (
        size * objectives.consistency_loss(clean, clean_1, clean_2).item(),
        size * objectives.consistency_loss(clean, clean_1, clean_1).item(),
    )


# ------------------------------------------------------------------------------------------------ METHOD 3.2, its facts


@every_data
@every_move
def test_with_the_posterior_transition_the_exact_velocity_is_a_zero_of_the_two_sample_form_only(data, level, delta):
    two_sample, one_sample = expected_losses(data, level, delta, posterior)
    assert two_sample == pytest.approx(0, abs=1e-12 * max(one_sample, 1))
    assert one_sample > 1e-7


@every_data
@every_move
def test_with_a_fixed_eta_the_exact_velocity_is_not_a_zero(data, level, delta):
    """The conditional mean of `h(x', t')` is then not `h(x_t, t)`: a square is left over, bias that more samples keep."""
    two_sample, one_sample = expected_losses(data, level, delta, cps(0.9))
    assert 1e-6 < two_sample < one_sample


@every_data
@pytest.mark.parametrize(("level", "delta"), [(0.98, 200), (0.75, 100), (0.5, 200)])
def test_a_fixed_eta_is_right_only_where_its_cosine_is_rho(data, level, delta):
    lower = target_level(level, delta)
    rho = lower * (1 - level) / (level * (1 - lower))
    right = math.acos(rho) * 2 / math.pi
    at_rho, *beside = (expected_losses(data, level, delta, cps(eta))[0] for eta in (right, right - 0.05, right + 0.05))
    assert at_rho == pytest.approx(0, abs=1e-12)
    assert min(beside) > 1e-6


@every_data
@every_move
def test_with_eta_zero_the_two_forms_coincide(data, level, delta):
    """Both paths are the one Euler step: the reason for the warning that METHOD asks for."""
    two_sample, one_sample = expected_losses(data, level, delta, cps(0.0))
    assert two_sample == one_sample


@every_data
@pytest.mark.parametrize("transition", [posterior, cps(0.9)], ids=["posterior", "cps"])
def test_a_move_to_zero_ends_at_the_clean_prediction_and_costs_nothing(data, transition):
    assert target_level(0.15, 200) == 0
    assert expected_losses(data, 0.15, 200, transition) == pytest.approx((0, 0), abs=1e-25)


@every_data
@pytest.mark.parametrize("level", [0.98, 0.75, 0.3])
def test_the_posterior_transition_is_exact_in_the_mean_and_in_law_for_short_moves(data, level):
    """Against the true reverse process `x' | x_t`: its variance is of order Δ, what is missing of order Δ²."""

    def missing_and_true_variance(gap: float) -> tuple[float, float]:
        lower = level - gap
        _, sample, moved, _ = moves(data, level, lower, posterior)
        _, g, old, fresh = true_path = variables(3)
        path_low = objectives.interpolate(data.clean(true_path[0], g), old, sigma=lower)
        path_high = objectives.renoise(path_low, sigma_start=lower, sigma_end=level, noise=fresh)
        ours, truth = (regression(a, b) for a, b in ((moved, sample), (path_low, path_high)))
        assert_close(ours, truth)
        true = conditional_variance(path_low, path_high)
        return true - conditional_variance(moved, sample), true

    (long_missing, long_true), (short_missing, short_true) = (missing_and_true_variance(gap) for gap in (1e-3, 1e-5))
    assert 0 < short_missing < long_missing
    assert long_missing / short_missing == pytest.approx(1e4, rel=0.1)
    assert long_true / short_true == pytest.approx(1e2, rel=0.1)


def regression(target: Tensor, given: Tensor) -> Tensor:
    """`E[target | given]` as (slope, offset)."""
    mean = conditional_mean(target, given)
    slope = (mean[:, 1:] * given[:, 1:]).sum() / given[:, 1:].square().sum()
    return torch.stack([slope, mean[0, 0] - slope * given[0, 0]])


# ------------------------------------------------------------------------------------------------- the functions as such


def test_the_target_level_moves_down_by_timesteps_and_stops_at_zero():
    level, delta = torch.tensor([0.98, 0.5, 0.2, 0.05]), torch.tensor([1, 200, 200, 200])
    assert_close(objectives.consistency_target_level(delta, sigma=level), torch.tensor([0.979, 0.3, 0.0, 0.0]))


def test_the_target_level_takes_other_ranges():
    level, delta = torch.tensor([0.5]), torch.tensor([10])
    lower = objectives.consistency_target_level(delta, sigma=level, num_train_timesteps=100)
    assert_close(lower, torch.tensor([0.4]))


def test_the_loss_by_hand():
    clean = torch.zeros(1, 3)
    one, other = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[4.0, 5.0, -1.0]])
    assert objectives.consistency_loss(clean, one, other).item() == pytest.approx((4 - 10 - 3) / 3)
    assert objectives.consistency_loss(clean, one, one).item() == pytest.approx((1 + 4 + 9) / 3)


def test_the_loss_may_be_negative_and_does_not_care_for_the_order():
    clean, one = normal(2, 2, 3)
    other = 2 * clean - one
    assert objectives.consistency_loss(clean, one, other) < 0
    assert objectives.consistency_loss(clean, one, other) == objectives.consistency_loss(clean, other, one)


def test_the_gradient_reaches_all_three_predictions():
    clean, one, other = (part.requires_grad_() for part in normal(3, 2, 5))
    gradients = torch.autograd.grad(objectives.consistency_loss(clean, one, other), [clean, one, other])
    expected = [2 * clean - one - other, other - clean, one - clean]
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert_close(gradient, wanted.detach() / clean.numel())
