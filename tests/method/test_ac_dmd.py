"""What the fake score learns from: levels, targets, weight and loss, with exact Gaussian expectations."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rtdmd_lightning import objectives
from tests.support.gaussian import (
    DATA,
    SEGMENTS,
    GaussianData,
    conditional_mean,
    conditional_variance,
    covariance,
    mean,
    normal,
    probe,
    variables,
)

ETA = 0.9
PREVIOUS = {0.0: 0.5, 0.5: 0.75, 0.75: 0.9, 0.9: 1.0}  # the level a boundary's CPS step starts from

every_segment = pytest.mark.parametrize(("start", "end"), SEGMENTS)
every_data = pytest.mark.parametrize("data", DATA, ids=str)


def ambient(x_start: Tensor, noise: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
    """x_t and its ambient target, as coefficients."""
    levels = {"sigma_start": start, "sigma_end": end}
    x_end = probe(lambda x, z: objectives.renoise(x, noise=z, **levels), x_start, noise)
    target = probe(lambda x, z: objectives.ambient_velocity_target(x, noise=z, **levels), x_start, noise)
    return x_end, target


def both_targets(data: GaussianData, start: float, end: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(1, x_t, u, u_RB), x_s made by a CPS step with the exact velocity: its mean contains the predicted noise."""
    one, g, old, step_noise, noise = variables(4)
    previous = PREVIOUS[start]
    sample = objectives.interpolate(data.clean(one, g), old, sigma=previous)
    velocity = data.velocity(sample, previous, one)
    step = {"sigma": previous, "sigma_next": start, "eta": ETA}
    _, step_std = objectives.cps_mean_std(sample, velocity, **step)
    x_start = objectives.cps_step(sample, velocity, noise=step_noise, **step)
    x_end, target = ambient(x_start, noise, start, end)
    smoothed = probe(
        lambda x, z_c, z: objectives.rao_blackwell_velocity_target(
            x, sigma_start=start, sigma_end=end, step_std=step_std.item(), step_noise=z_c, noise=z
        ),
        x_end,
        step_noise,
        noise,
    )
    return one, x_end, target, smoothed


def variance_ratio(data: GaussianData, start: float, end: float) -> float:
    """Conditional variance of the ambient target over that of the Rao-Blackwell one."""
    _, x_end, target, smoothed = both_targets(data, start, end)
    return conditional_variance(target, x_end) / conditional_variance(smoothed, x_end)


# ---------------------------------------------------------------------------------------------------- renoising levels


@pytest.mark.parametrize("start", [0.0, 0.5, 0.75, 0.9])
def test_renoise_level_goes_from_just_above_the_boundary_to_the_clamp(start):
    lowest, highest = objectives.renoise_level(torch.tensor([0.0, 1 - 1e-9], dtype=torch.float64), sigma_start=start)
    assert lowest.item() == pytest.approx(max(start + 0.01, 0.02), abs=1e-12)
    assert highest.item() == 0.98


@pytest.mark.parametrize("start", [0.0, 0.5, 0.75, 0.9])
def test_renoise_level_is_uniform_before_the_clamp(start):
    """The share of uniform draws at or below a level t is `(t - s - 0.01)/(1 - s - 0.01)`; the clamps gather the ends."""
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    levels = objectives.renoise_level(uniform, sigma_start=start)
    width = 1 - start - 0.01
    for level in (start + 0.01 + share * width for share in (0.2, 0.5, 0.7)):
        assert (levels <= level).double().mean().item() == pytest.approx((level - start - 0.01) / width, abs=2e-5)
    assert (levels == 0.98).double().mean().item() == pytest.approx(0.02 / width, abs=2e-5)
    assert (levels == 0.02).double().mean().item() == pytest.approx(max(0.01 - start, 0) / width, abs=2e-5)


@pytest.mark.parametrize("start", [0.98, 0.99, 1.0, -0.1])
def test_a_boundary_at_or_above_the_clamp_is_refused(start):
    """Its levels would all be the clamp, at or below the boundary: renoising downwards, with a floored variance."""
    with pytest.raises(ValueError, match=f"goes up to the level 0.98, so it cannot start at {start}"):
        objectives.renoise_level(torch.tensor([0.5]), sigma_start=start)


@pytest.mark.parametrize("start", [0.0, 0.5, 0.967, 0.979])
def test_renoise_levels_lie_above_their_boundary(start):
    assert (objectives.renoise_level(torch.linspace(0, 1, 101), sigma_start=start) > start).all()


def test_renoise_level_takes_other_ranges():
    uniform = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    plain = {"low": 0, "clamp": (0, 100), "num_train_timesteps": 100}
    assert_close(objectives.renoise_level(uniform, sigma_start=0.5, **plain), 0.5 + uniform / 2)


# ------------------------------------------------------------------------------------------- conditional means, exactly


@every_data
@every_segment
def test_ambient_target_has_the_marginal_velocity_as_conditional_mean(data, start, end):
    """`E[u | x_t] = E[ε - x0 | x_t]`, though u sees x_s and never x0."""
    one, g, noise, fresh = variables(3)
    x_start = objectives.interpolate(data.clean(one, g), noise, sigma=start)
    x_end, target = ambient(x_start, fresh, start, end)
    assert_close(conditional_mean(target, x_end), data.velocity(x_end, end, one))


@every_segment
def test_ambient_target_is_the_slope_of_the_renoised_sample(start, end):
    """`u = d x_t/dt` at fixed (x_s, z): autograd through the real renoising."""
    x_start, noise = normal(1, 3, seed=1), normal(1, 3, seed=2)
    level = torch.tensor(end, dtype=torch.float64)
    slope = torch.func.jacfwd(lambda t: objectives.renoise(x_start, sigma_start=start, sigma_end=t, noise=noise))(level)
    target = objectives.ambient_velocity_target(x_start, sigma_start=start, sigma_end=end, noise=noise)
    assert_close(target, slope, rtol=1e-9, atol=1e-9)


@every_data
@every_segment
def test_rao_blackwell_target_has_the_conditional_mean_of_the_ambient_one(data, start, end):
    """Though x_s - μ is CPS noise and μ is correlated with the old one: both are the velocity of x_t's own marginal."""
    one, x_end, target, smoothed = both_targets(data, start, end)
    truth = GaussianData.behind(x_end, end).velocity(x_end, end, one)
    assert_close(conditional_mean(target, x_end), truth)
    assert_close(conditional_mean(smoothed, x_end), truth)


@pytest.mark.parametrize(("start", "end"), [segment for segment in SEGMENTS if segment[0] > 0])
def test_the_mean_must_be_weighted_by_the_steps_own_std(start, end):
    """A Rao-Blackwell target told another std has another conditional mean: what the test above would catch."""
    one, mu, step_noise, noise = variables(3)
    levels = {"sigma_start": start, "sigma_end": end}
    x_end = objectives.renoise(one + mu + 0.5 * start * step_noise, noise=noise, **levels)
    _, target = ambient(one + mu + 0.5 * start * step_noise, noise, start, end)
    told = {"step_std": start, "step_noise": step_noise, "noise": noise}
    wrong = objectives.rao_blackwell_velocity_target(x_end, **levels, **told)
    difference = conditional_mean(wrong, x_end) - conditional_mean(target, x_end)
    assert difference.abs().max() > 1e-2


# ------------------------------------------------------------------------------------------------ conditional variances


@every_data
@pytest.mark.parametrize(("start", "end"), [segment for segment in SEGMENTS if segment[0] > 0])
def test_rao_blackwell_target_has_the_smaller_conditional_variance(data, start, end):
    _, x_end, target, smoothed = both_targets(data, start, end)
    assert conditional_variance(smoothed, x_end) < conditional_variance(target, x_end)


@every_data
@pytest.mark.parametrize("end", [0.92, 0.95, 0.98])
def test_what_it_gains_grows_with_the_noise_of_the_boundary(data, end):
    """At the same t, from each boundary: at least 1.4, 4 and 20 fold, the least that METHOD section 3.2 quotes for each."""
    gains = [variance_ratio(data, start, end) for start in (0.5, 0.75, 0.9)]
    assert gains == sorted(gains)
    assert all(gain > least for gain, least in zip(gains, (1.4, 4, 20), strict=True)), gains


def test_near_the_boundary_only_the_ambient_target_is_singular():
    """As t → s its conditional variance grows like 1/(t-s); the Rao-Blackwell one's has a limit."""
    near, nearer = (both_targets(DATA[0], 0.75, 0.75 + gap) for gap in (1e-4, 1e-6))
    ambient_growth, smoothed_growth = (
        conditional_variance(nearer[which], nearer[1]) / conditional_variance(near[which], near[1]) for which in (2, 3)
    )
    assert ambient_growth == pytest.approx(100, rel=1e-2)
    assert smoothed_growth == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("end", [0.02, 0.5, 0.98])
def test_from_a_clean_sample_both_are_plain_flow_matching(end):
    clean, noise = normal(2, 3, 4, seed=1), normal(2, 3, 4, seed=2)
    levels = {"sigma_start": 0.0, "sigma_end": end}
    x_end = objectives.interpolate(clean, noise, sigma=end)
    last_step = {"step_std": 0.0, "step_noise": 1e6 * torch.ones_like(noise)}  # nothing of it may get in
    smoothed = objectives.rao_blackwell_velocity_target(x_end, noise=noise, **last_step, **levels)
    assert_close(objectives.ambient_velocity_target(clean, noise=noise, **levels), noise - clean)
    assert_close(smoothed, noise - clean)


# --------------------------------------------------------------------------------------- conditional means, by sampling


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.7), (0.75, 0.85), (0.9, 0.95)])
def test_both_targets_average_to_the_field_of_a_two_point_mixture(start, end):
    """μ = ±2: not Gaussian, so the velocity is a tanh. In 16 bins of x_t, within 4.5 standard errors of it."""
    count, bins = 160_000, 16
    step_std = start * math.sin(ETA * math.pi / 2)
    step_noise, noise = normal(2, count, 1, seed=5)
    mu = 2 * (torch.arange(count, dtype=torch.float64) % 2 * 2 - 1)[:, None]
    x_start = mu + step_std * step_noise
    levels = {"sigma_start": start, "sigma_end": end, "noise": noise}
    x_end = objectives.renoise(x_start, **levels)
    targets = {
        "ambient": objectives.ambient_velocity_target(x_start, **levels),
        "rao_blackwell": objectives.rao_blackwell_velocity_target(
            x_end, step_std=step_std, step_noise=step_noise, **levels
        ),
        "control": objectives.rao_blackwell_velocity_target(
            x_end, step_std=step_std / 2, step_noise=step_noise, **levels
        ),  # told another std than the step's
    }

    scale = (1 - end) / (1 - start)
    width_squared = (scale * step_std) ** 2 + end**2 - (scale * start) ** 2
    mu_given = 2 * torch.tanh(2 * scale * x_end / width_squared)
    truth = (end * (x_end - scale * mu_given) / width_squared - x_end) / (1 - end)

    order = x_end.flatten().argsort()

    def standard_errors(error: Tensor) -> Tensor:
        """Per bin, the mean error over its standard error (floored: in the tails μ is certain, and so is the target)."""
        binned = error.flatten()[order].view(bins, -1)
        return binned.mean(1) / (binned.std(1) / binned.shape[1] ** 0.5).clamp_min(1e-3)

    largest = {name: standard_errors(target - truth).abs().max().item() for name, target in targets.items()}
    assert largest["ambient"] < 4.5 and largest["rao_blackwell"] < 4.5
    assert largest["control"] > 4.5, "too few samples to tell a wrong target from a right one"


# -------------------------------------------------------------------------------------------------------------- the loss


@every_data
@every_segment
def test_the_loss_is_least_at_the_marginal_velocity(data, start, end):
    """Among affine fields `v(x) = slope·(x - E x) + offset`: the gradient of the expected loss vanishes at the true one.

    The mean over coefficients is 1/K of the expectation of the square.
    """
    one, g, noise, fresh = variables(3)
    x_start = objectives.interpolate(data.clean(one, g), noise, sigma=start)
    x_end, target = ambient(x_start, fresh, start, end)
    truth = data.velocity(x_end, end, one)
    centred = x_end - mean(x_end) * one
    true_field = torch.stack([covariance(truth, x_end) / covariance(x_end, x_end), mean(truth)]).flatten()

    def gradient(field: Tensor) -> Tensor:
        field = field.clone().requires_grad_()
        velocity = field[0] * centred + field[1] * one
        loss = objectives.fake_score_loss(velocity, target, sigma_start=start, sigma_end=end)
        return torch.autograd.grad(loss, field)[0]

    assert_close(gradient(true_field), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (gradient(true_field + 0.1) > 1e-5).all()


@pytest.mark.parametrize(("end", "weight"), [(0.5, 4.0), (0.8, 1 / 0.64), (0.1, 10.0), (0.02, 10.0)])
def test_the_weight_is_the_inverse_variance_up_to_ten(end, weight):
    level = torch.tensor([end], dtype=torch.float64)
    assert objectives.fake_score_weight(sigma_start=0.0, sigma_end=level).item() == pytest.approx(weight)


def test_the_loss_by_hand():
    """s = 0, so σ_ts = t. At t = ½ the weight 4 cancels σ_ts² = ¼; at t = 0.1 it is clamped, 10·0.01 = 0.1."""
    velocity = torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]], dtype=torch.float64)
    level = torch.tensor([0.5, 0.1], dtype=torch.float64)
    loss = objectives.fake_score_loss(velocity, torch.zeros_like(velocity), sigma_start=0.0, sigma_end=level)
    assert loss.item() == pytest.approx((1 + 4 + 0.1 * (9 + 1)) / 4)
