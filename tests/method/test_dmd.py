"""The generator's loss: its gradient, its two normalisers, and what METHOD section 3.3 says of them."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rtdmd_lightning import objectives
from tests.support.gaussian import normal

SHAPE = (3, 2, 4)
ETA = 0.9


def triple() -> tuple[Tensor, Tensor, Tensor]:
    """x, fake and teacher."""
    return normal(*SHAPE, seed=1), normal(*SHAPE, seed=2), normal(*SHAPE, seed=3)


def loss_and_gradient(x: Tensor, fake: Tensor, teacher: Tensor, **options) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    loss = objectives.distribution_matching_loss(x, fake, teacher, **options)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def mean_distance(one: Tensor, other: Tensor) -> Tensor:
    """Per sample, written out as a loop, broadcast against the samples."""
    distances = [sum(abs(v) for v in (a - b).flatten().tolist()) / a.numel() for a, b in zip(one, other, strict=True)]
    return torch.tensor(distances, dtype=torch.float64).view(-1, 1, 1)


# --------------------------------------------------------------------------------------------------------- the gradient


def test_the_gradient_is_the_normalised_difference_over_the_number_of_elements():
    x, fake, teacher = triple()
    loss, gradient = loss_and_gradient(x, fake, teacher)
    g = (fake - teacher) / mean_distance(x, teacher)
    assert_close(gradient, g / x.numel())
    assert_close(loss, 0.5 * g.square().mean())


def test_without_normalisation_it_is_the_plain_difference():
    x, fake, teacher = triple()
    loss, gradient = loss_and_gradient(x, fake, teacher, normalize=False)
    assert_close(gradient, (fake - teacher) / x.numel())
    assert_close(loss, 0.5 * (fake - teacher).square().mean())


def test_another_pair_divides_by_its_own_distance():
    x, fake, teacher = triple()
    pair = normal(*SHAPE, seed=4), normal(*SHAPE, seed=5)
    _, gradient = loss_and_gradient(x, fake, teacher, normalizer=pair)
    assert_close(gradient, (fake - teacher) / mean_distance(*pair) / x.numel())


def test_descent_moves_from_the_generators_distribution_to_the_teachers():
    x, fake, teacher = triple()
    _, gradient = loss_and_gradient(x, fake, teacher)
    towards_teacher = ((teacher - fake) * -gradient).flatten(1).sum(dim=1)
    assert (towards_teacher > 0).all()


def test_a_larger_sample_does_not_weigh_more():
    """The normaliser is each sample's own: all three tensors of one sample times ten leave every gradient as it was."""
    x, fake, teacher = triple()
    factor = torch.tensor([1.0, 10.0, 1.0], dtype=torch.float64).view(-1, 1, 1)
    _, gradient = loss_and_gradient(x, fake, teacher)
    _, scaled = loss_and_gradient(factor * x, factor * fake, factor * teacher)
    assert_close(scaled, gradient)


def test_where_fake_and_teacher_agree_nothing_pulls():
    x, fake, _ = triple()
    loss, gradient = loss_and_gradient(x, fake, fake)
    assert loss == 0 and torch.equal(gradient, torch.zeros_like(x))


def test_nan_becomes_zero_and_stays_in_its_sample():
    """0/0 (x, fake and teacher all the same) and a nan from a network."""
    x, fake, teacher = triple()
    _, expected = loss_and_gradient(x, fake, teacher)
    fake[0], teacher[0] = x[0], x[0]
    fake[1, 0, 0] = math.nan
    expected[0], expected[1, 0, 0] = 0, 0
    loss, gradient = loss_and_gradient(x, fake, teacher)
    assert_close(gradient, expected)
    assert loss.isfinite()


def test_only_x_carries_gradient():
    leaves = [part.requires_grad_() for part in (*triple(), normal(*SHAPE, seed=4), normal(*SHAPE, seed=5))]
    x, fake, teacher, one, other = leaves
    objectives.distribution_matching_loss(x, fake, teacher, normalizer=(one, other)).backward()
    assert x.grad is not None and all(leaf.grad is None for leaf in leaves[1:])


def test_a_normalizer_that_would_be_ignored_is_refused():
    x, fake, teacher = triple()
    with pytest.raises(ValueError, match="normalize=False"):
        objectives.distribution_matching_loss(x, fake, teacher, normalize=False, normalizer=(x, teacher))


# ----------------------------------------------------------------------------------- METHOD 3.3: what the normalisers see


def scene(start: float, end: float, seed: int, *, apart: float) -> dict[str, Tensor]:
    """Clean predictions and velocities that are fixed; x_s, and the teacher's and the fake's return to s, with noises of
    their own (the seed's)."""
    clean_generator, direction, fake_shift = (normal(*SHAPE, seed=seed) for seed in (10, 11, 12))
    clean_teacher = clean_generator + apart * direction
    step_noise, old_noise, end_noise, return_noise = normal(4, *SHAPE, seed=100 + seed)
    x_end = objectives.interpolate(clean_teacher, end_noise, sigma=end)
    teacher = end_noise - clean_teacher
    back = {"sigma": end, "sigma_next": start, "eta": ETA, "noise": return_noise}
    fake = teacher + fake_shift
    previous = objectives.interpolate(clean_generator, old_noise, sigma=0.95)
    made = {"sigma": 0.95, "sigma_next": start, "eta": ETA, "noise": step_noise}
    return {
        "clean_generator": clean_generator,
        "clean_teacher": clean_teacher,
        "difference": fake_shift,
        "x": objectives.cps_step(previous, old_noise - clean_generator, **made),
        "teacher": objectives.cps_step(x_end, teacher, **back),
        "fake": objectives.cps_step(x_end, fake, **back),
    }


def gradients_of_both(start: float, seed: int, *, apart: float = 0.5) -> tuple[Tensor, Tensor]:
    """With the paper's normaliser and with the noise-free one."""
    parts = scene(start, (1 + start) / 2, seed, apart=apart)
    pair = objectives.noise_free_pair(parts["clean_generator"], parts["clean_teacher"], sigma=start)
    samples = parts["x"], parts["fake"], parts["teacher"]
    return loss_and_gradient(*samples)[1], loss_and_gradient(*samples, normalizer=pair)[1]


@pytest.mark.parametrize("end", [0.92, 0.97])
@pytest.mark.parametrize("start", [0.0, 0.5, 0.75, 0.9])
def test_the_pull_is_the_difference_of_the_velocities_times_minus_c(start, end):
    """`x_s^F - x_s^T = -c·(F-T)`, `c = t(1-s) - s(1-t)·cos(ηπ/2)`: the shared return noise cancels."""
    parts = scene(start, end, 0, apart=0.5)
    c = end * (1 - start) - start * (1 - end) * math.cos(ETA * math.pi / 2)
    assert c > 0
    assert_close(parts["fake"] - parts["teacher"], -c * parts["difference"])


@pytest.mark.parametrize("start", [0.5, 0.75, 0.9])
def test_the_papers_normaliser_varies_with_the_noises_and_the_noise_free_one_does_not(start):
    papers, noise_free = zip(*(gradients_of_both(start, seed) for seed in range(4)), strict=True)
    for other in noise_free[1:]:
        assert_close(other, noise_free[0])
    assert all(((other / papers[0]).mean(dim=(1, 2)) - 1).abs().max() > 0.02 for other in papers[1:])


@pytest.mark.parametrize("start", [0.5, 0.75, 0.9])
def test_the_papers_normaliser_is_floored_by_the_noise(start):
    """However close the clean predictions: it stays about s (the mean of |N(0, 2s²)| is 1.13 s); the noise-free one goes
    to zero with them."""
    for apart in (1e-1, 1e-3):
        parts = scene(start, (1 + start) / 2, 0, apart=apart)
        papers = mean_distance(parts["x"], parts["teacher"])
        pair = objectives.noise_free_pair(parts["clean_generator"], parts["clean_teacher"], sigma=start)
        assert papers.min() > 0.4 * start
        assert mean_distance(*pair).max() < 2 * (1 - start) * apart


def test_at_a_clean_boundary_the_two_normalisers_are_one():
    papers, noise_free = gradients_of_both(0.0, 0)
    assert_close(noise_free, papers)


@pytest.mark.parametrize("sigma", [0.25, torch.tensor([0.0, 0.25, 0.9], dtype=torch.float64)], ids=str)
def test_the_noise_free_pair_is_scaled_to_the_boundary(sigma):
    one, other, _ = triple()
    level = torch.as_tensor(sigma, dtype=torch.float64).expand(3).view(-1, 1, 1)
    pair = objectives.noise_free_pair(one, other, sigma=sigma)
    assert_close(pair[0], (1 - level) * one)
    assert_close(pair[1], (1 - level) * other)
