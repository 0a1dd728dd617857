"""The consistency regulariser by value: which transitions it makes, with whose noise, and where its gradient goes."""

from dataclasses import replace

import pytest
import torch

from rtdmd_lightning.losses import Consistency
from rtdmd_lightning.sampling.structures import ExecutedStep, Subinterval
from rtdmd_lightning.utils.randomness import SampleRandom
from tests.support.known import COS, SIN, KnownDraws, cps_mean, linear, per_sample, randn, renoised, with_fields
from tests.support.tiny import tiny_module

CPU = torch.device("cpu")
B = 3
UNIFORM, S, MAX_DELTA = torch.tensor([0.2, 0.5, 0.9]), 0.5, 400
DELTAS = torch.tensor([0.0, 0.3, 0.999]), torch.tensor([0.6, 0.2, 0.4])  # uniform draws


def setting(folder, **options):
    module = tiny_module(folder, consistency=Consistency(max_delta=MAX_DELTA, **options))
    return module, module.embed(["a red circle"] * B, CPU)


def boundary(x):
    return ExecutedStep(0.75, S, randn(B, 1), randn(B, 2), randn(B, 3), x)


def lowered(t, draw):
    """`t' = max(1000·t - Δ, 0)/1000`, Δ uniform in 1 to MAX_DELTA."""
    return (t - per_sample(1 + (MAX_DELTA * draw).floor()) / 1000).clamp_min(0)


def transition(kind, x, slope, t, t_next, z):
    """METHOD section 3.2, from the velocity `slope·x`."""
    if kind == "cps":
        return cps_mean(x, slope * x, t, t_next) + t_next * SIN * z
    rho = t_next * (1 - t) / (t * (1 - t_next))
    noise = rho * (x + (1 - t) * slope * x) + (1 - rho**2).sqrt() * z
    return (1 - t_next) * (x - t * slope * x) + t_next * noise


@pytest.mark.parametrize("kind", ["cps", "posterior"])
@pytest.mark.parametrize(("samples", "moves"), [(2, 1), (1, 1), (2, 2)])
def test_the_fake_scores_loss_gains_the_product_of_the_two_differences(tiny_folder, kind, samples, moves):
    """`L_ambient + weight·mean((h(x'_1) - h(x_t))·(h(x'_2) - h(x_t)))`; its gradient passes all three h and no transition."""
    weight, slope = 5.0, torch.tensor(0.3, requires_grad=True)
    x, z, noises = randn(B, 4), randn(B, 5), [randn(B, 6 + k) for k in range(samples * moves)]
    values = []
    for factor in (0.0, weight):
        module, conditioning = setting(tiny_folder, weight=factor, transition=kind, samples=samples, moves=moves)
        with_fields(module, fake_score=linear(slope))
        draws = KnownDraws([UNIFORM, *DELTAS[:moves]], [z, *noises])
        values.append(module.fake_score_loss(boundary(x), conditioning, draws, "update"))
    regulariser = values[1] - values[0]

    start, _, x_t = renoised(x, S, UNIFORM, z)
    differences = []
    for branch in range(samples):
        t, moved = start, x_t
        for move in range(moves):
            t_next = lowered(t, DELTAS[move])
            moved = transition(kind, moved, slope.detach(), t, t_next, noises[move * samples + branch])
            t = t_next
        differences.append(moved * (1 - t * slope) - x_t * (1 - start * slope))
    expected = weight * (differences[0] * differences[-1]).mean()
    torch.testing.assert_close(regulariser, expected, rtol=2e-3, atol=0)
    gradients = [torch.autograd.grad(value, slope)[0] for value in (regulariser, expected)]
    torch.testing.assert_close(*gradients, rtol=2e-3, atol=0)


@pytest.mark.parametrize("moves", [1, 2])
def test_the_branches_move_with_independent_noise(tiny_folder, moves):
    """The noise of each branch, read off the states that the fake score sees, is standard normal and tells nothing of the other
    branch's, of the renoising, or of another sample's."""
    count = 48
    module, _ = setting(tiny_folder, moves=moves)
    conditioning = module.embed(["a red circle"] * count, CPU)
    seen = []
    with_fields(module, fake_score=lambda latents, t, _: seen.append((latents, t)) or torch.zeros_like(latents))
    random = SampleRandom(0, list(range(count)), CPU)
    drawn = module.renoise_from(randn(count, 1), 0.0, random, "update")
    interval = replace(drawn, sigma_end=torch.full((count,), 0.9))  # high enough for every move to end above 0
    module.fake_score_loss.consistency(interval, torch.zeros_like(interval.end), conditioning, random, "update")

    states = [torch.cat([interval.end] * 2), *(latents for latents, _ in seen)]
    assert len(seen) == moves
    draws = [interval.start, interval.noise]
    for before, (after, t) in zip(states[:-1], seen, strict=True):
        noise = (after - before * (1 - t + t * COS)) / (t * SIN)  # with velocity 0, x̂0 and ε̂ are both the state
        assert noise.mean().abs() < 0.03 and abs(noise.std() - 1) < 0.03
        draws += noise.chunk(2)
    draws += [draws[-2].roll(1, 0), draws[-1].roll(1, 0)]
    correlations = torch.corrcoef(torch.stack([draw.flatten() for draw in draws])).fill_diagonal_(0)
    assert correlations.abs().max() < 0.04  # 12288 numbers each: a standard error of 0.009


def test_both_branches_go_down_to_one_level_drawn_per_sample(tiny_folder):
    """Δ is uniform in 1 to `max_delta` timesteps, the same for a sample's branches."""
    count = 200
    module, _ = setting(tiny_folder)
    conditioning = module.embed(["a red circle"] * count, CPU)
    levels = []
    with_fields(module, fake_score=lambda latents, t, _: levels.append(t) or torch.zeros_like(latents))
    start = torch.full((count,), 0.9)
    x = randn(count, 1)
    interval = Subinterval(x, 0.0, x, start, x)
    module.fake_score_loss.consistency(interval, x, conditioning, SampleRandom(0, range(count), CPU), "update")
    one, other = levels[0].flatten().chunk(2)
    assert torch.equal(one, other)
    deltas = 1000 * (start - one)
    assert 0.99 < deltas.min() < 20 and MAX_DELTA - 20 < deltas.max() < MAX_DELTA + 0.01
    assert abs(deltas.mean() - MAX_DELTA / 2) < 30
