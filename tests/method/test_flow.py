"""The linear path, its schedules and renoising, against algebra."""

import math

import pytest
import torch
from torch.testing import assert_close

from rtdmd_lightning import objectives
from tests.support.gaussian import SEGMENTS, covariance, normal, probe, variables

STEPS = [1000, 750, 500, 250]


def test_shift_three_gives_the_schedule_of_the_method():
    assert objectives.shift_sigmas(STEPS, shift=3.0) == pytest.approx([1.0, 0.9, 0.75, 0.5], abs=1e-15)


def test_shift_one_and_mu_zero_leave_a_schedule_alone():
    raw = [1.0, 0.75, 0.5, 0.25]
    assert objectives.shift_sigmas(STEPS, shift=1.0) == pytest.approx(raw, abs=1e-15)
    assert objectives.dynamic_shift_sigmas(STEPS, mu=0.0) == pytest.approx(raw, abs=1e-15)


@pytest.mark.parametrize("mu", [-0.7, 0.5, 2.3])
def test_dynamic_shift_follows_its_own_formula_and_ends_at_zero(mu):
    """The code calls the static shift by e^μ; this is METHOD's expression, which a step of 0 would divide by zero."""
    expected = [math.exp(mu) / (math.exp(mu) + 1000 / step - 1) for step in STEPS]
    assert objectives.dynamic_shift_sigmas([*STEPS, 0], mu=mu) == pytest.approx([*expected, 0.0], abs=1e-15)


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_a_shift_must_be_positive(shift):
    with pytest.raises(ValueError, match="positive factor"):
        objectives.shift_sigmas(STEPS, shift=shift)


@pytest.mark.parametrize("steps", [[1001, 500], [500, -1]], ids=str)
def test_steps_outside_the_training_range_are_refused(steps):
    for shifted in (
        lambda: objectives.shift_sigmas(steps, shift=3.0),
        lambda: objectives.dynamic_shift_sigmas(steps, mu=1),
    ):
        with pytest.raises(ValueError, match="between 0 and 1000"):
            shifted()


@pytest.mark.parametrize("num_steps", [1, 2, 4, 10, 50, 200, 300])
@pytest.mark.parametrize("tokens", [256, 1024, 4096, 4300, 4301, 8192])
def test_flux2_mu_is_that_of_diffusers(tokens, num_steps):
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    ours = objectives.flux2_mu(tokens, num_steps)
    assert ours == pytest.approx(compute_empirical_mu(tokens, num_steps), rel=1e-12)


def test_shifting_twice_is_shifting_by_the_square():
    """Why a shifted schedule must not be shifted again: it would be another schedule."""
    once = objectives.shift_sigmas(STEPS, shift=3.0)
    twice = objectives.shift_sigmas([1000 * sigma for sigma in once], shift=3.0)
    assert twice == pytest.approx(objectives.shift_sigmas(STEPS, shift=9.0), abs=1e-15)
    assert twice != pytest.approx(once, abs=1e-2)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (2176, 0.825)])
def test_flux_mu_goes_through_its_two_points_and_their_middle(tokens, mu):
    assert objectives.flux_mu(tokens) == pytest.approx(mu, abs=1e-15)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)], ids=str)
def test_clean_and_noise_are_recovered_from_the_true_velocity(sigma):
    clean, noise = normal(2, 3, 4, 5)
    sample, velocity = objectives.interpolate(clean, noise, sigma=sigma), noise - clean
    assert_close(objectives.clean_from_velocity(sample, velocity, sigma=sigma), clean)
    assert_close(objectives.noise_from_velocity(sample, velocity, sigma=sigma), noise)


def test_the_velocity_is_the_slope_of_the_path():
    clean, noise = normal(2, 2, 3)
    early, late = (objectives.interpolate(clean, noise, sigma=sigma) for sigma in (0.25, 0.75))
    assert_close((late - early) / 0.5, noise - clean)


@pytest.mark.parametrize(("scale", "conditional", "unconditional"), [(0, 0, 1), (1, 1, 0), (4.5, 4.5, -3.5)])
def test_guidance_extrapolates_from_the_unconditional_velocity(scale, conditional, unconditional):
    one, other = normal(2, 2, 3)
    guided = objectives.guided_velocity(one, other, guidance_scale=scale)
    assert_close(guided, conditional * one + unconditional * other)


@pytest.mark.parametrize(("start", "end"), SEGMENTS)
def test_renoising_reaches_the_forward_law(start, end):
    """From `x_s = (1-s)·x0 + s·ε` to `(1-t)·x0 +` noise of standard deviation t."""
    _, clean, noise, fresh = variables(3)
    x_start = objectives.interpolate(clean, noise, sigma=start)
    x_end = probe(lambda x, z: objectives.renoise(x, sigma_start=start, sigma_end=end, noise=z), x_start, fresh)
    assert covariance(x_end, clean).item() == pytest.approx(1 - end, rel=1e-12)
    assert covariance(x_end, x_end).item() == pytest.approx((1 - end) ** 2 + end**2, rel=1e-12)


@pytest.mark.parametrize(
    ("start", "middle", "end"), [(0, 0.5, 0.9), (0.5, 0.75, 0.9), (0.75, 0.76, 0.98), (0.9, 0.95, 1)]
)
def test_renoising_in_two_steps_has_the_law_of_one(start, middle, end):
    def law(*levels: float) -> tuple[float, float]:
        _, x_start, *fresh = variables(len(levels))
        x = x_start
        for low, high, z in zip(levels[:-1], levels[1:], fresh, strict=True):
            x = objectives.renoise(x, sigma_start=low, sigma_end=high, noise=z)
        coefficient = covariance(x, x_start)
        return coefficient.item(), (covariance(x, x) - coefficient**2).item()

    assert law(start, middle, end) == pytest.approx(law(start, end), rel=1e-12)


def test_renoising_to_the_same_level_is_the_identity_up_to_the_variance_floor():
    x, noise = normal(2, 2, 3)
    scale, std = objectives.renoise_scale(sigma_start=0.5, sigma_end=torch.tensor(0.5, dtype=torch.float64))
    assert (scale.item(), std.item()) == (1.0, 1e-6)
    assert_close(objectives.renoise(x, sigma_start=0.5, sigma_end=0.5, noise=noise), x + 1e-6 * noise)


def test_renoising_to_one_is_pure_noise():
    x, noise = normal(2, 2, 3)
    assert torch.equal(objectives.renoise(x, sigma_start=0.9, sigma_end=1.0, noise=noise), noise)


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 7, 4), (3, 4, 2, 2)], ids=str)
def test_a_level_per_sample_broadcasts_over_all_other_dimensions(shape):
    """Images are `[B, C, H, W]`, packed FLUX latents `[B, N, C]`: neither may line levels up with another dimension."""
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    samples = normal(*shape)
    broadcast = objectives.broadcast_sigma(levels, samples)
    assert broadcast.shape == (3, *[1] * (len(shape) - 1))
    each = torch.stack([level * sample for level, sample in zip(levels, samples, strict=True)])
    assert torch.equal(broadcast * samples, each)


@pytest.mark.parametrize("number", [0.25, torch.tensor(0.25), torch.tensor(0.25, dtype=torch.bfloat16)], ids=repr)
def test_a_single_level_is_a_scalar_in_the_precision_of_the_sample(number):
    broadcast = objectives.broadcast_sigma(number, normal(3, 2))
    assert (broadcast.shape, broadcast.dtype, broadcast.item()) == ((), torch.float64, 0.25)


@pytest.mark.parametrize("shape", [(2,), (1,), (4,), (3, 1), (3, 7, 4)], ids=str)
def test_levels_of_any_other_shape_are_refused(shape):
    """`[4]` for `[3, 7, 4]` would broadcast silently over channels, `[1]` over samples."""
    with pytest.raises(ValueError, match=r"level per sample.* for 3 samples"):
        objectives.broadcast_sigma(torch.zeros(shape), normal(3, 7, 4))
