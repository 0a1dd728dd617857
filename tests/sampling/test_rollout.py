"""The rollout: one call a step, Euler where nothing is random, and the records that losses read."""

import math

import pytest
import torch

from rtdmd_lightning.sampling.sampler import CPSSampler
from rtdmd_lightning.sampling.structures import Conditioning, Trajectory

SIGMAS = (1.0, 0.9, 0.75, 0.5, 0.0)


class CountingVelocity:
    """v(x, σ) = x/2 - σ, and a record of the levels at which it was asked."""

    def __init__(self) -> None:
        self.levels: list[float] = []

    def __call__(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        self.levels.append(sigma)
        return latents / 2 - sigma


def step_noise(step: int) -> torch.Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(step))


START = torch.linspace(-2, 2, 8).reshape(2, 4)


def roll(sigmas=SIGMAS, eta: float = 0.9) -> tuple[Trajectory, CountingVelocity]:
    velocity = CountingVelocity()
    return CPSSampler(sigmas, eta).rollout(velocity, START, step_noise=step_noise), velocity


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_one_velocity_call_per_step(steps):
    """At the step's own level; K steps leave K+1 states, K velocities and K noises behind."""
    trajectory, velocity = roll(SIGMAS[: steps + 1])
    assert velocity.levels == list(SIGMAS[:steps])
    assert trajectory.sigmas == SIGMAS[: steps + 1]
    assert len(trajectory.states) == steps + 1
    assert len(trajectory.velocities) == len(trajectory.noises) == steps
    assert trajectory.states[0] is START


def test_velocities_and_noises_are_those_of_their_steps():
    trajectory, _ = roll()
    for step, sigma in enumerate(SIGMAS[:-1]):
        torch.testing.assert_close(trajectory.velocities[step], trajectory.states[step] / 2 - sigma, rtol=0, atol=0)
        torch.testing.assert_close(trajectory.noises[step], step_noise(step), rtol=0, atol=0)


def test_without_stochasticity_it_is_eulers_method():
    """x + (σ' - σ)·v for x = 2: v is 0, then 0.1, 0.2425 and 0.4621875; the noise, however large, plays no part."""
    trajectory = CPSSampler(SIGMAS, 0.0).rollout(
        CountingVelocity(),
        torch.tensor([[2.0]], dtype=torch.float64),
        step_noise=lambda step: torch.full((1, 1), 1e6),
    )
    expected = [2.0, 2.0, 1.985, 1.924375, 1.69328125]
    assert [state.item() for state in trajectory.states] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("eta", [0.3, 0.9, 1.0])
def test_one_stochastic_step_by_hand(eta):
    """From 1 to 0.9: x̂0 = x - v, ε̂ = x, x' = 0.1·x̂0 + 0.9·(cos·ε̂ + sin·z)."""
    trajectory, _ = roll((1.0, 0.9), eta)
    clean = START - (START / 2 - 1)
    angle = eta * math.pi / 2
    expected = 0.1 * clean + 0.9 * (math.cos(angle) * START + math.sin(angle) * step_noise(0))
    torch.testing.assert_close(trajectory.samples, expected)


@pytest.mark.parametrize("eta", [0.0, 0.9, 1.0])
def test_a_whole_schedule_ends_in_the_last_prediction_of_the_clean_sample(eta):
    """x̂0 = x - σ·v, whatever noise the last step was handed."""
    trajectory, _ = roll(eta=eta)
    clean = trajectory.states[3] - 0.5 * trajectory.velocities[3]
    torch.testing.assert_close(trajectory.samples, clean, rtol=0, atol=1e-7)
    other = CPSSampler(SIGMAS, eta).rollout(
        CountingVelocity(),
        START,
        step_noise=lambda step: step_noise(step) if step < 3 else torch.full((2, 4), 1e3),
    )
    assert torch.equal(other.samples, trajectory.samples)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_partial_schedule_is_the_beginning_of_the_whole_one(steps):
    """It stops at its own last level: random stops and whole rollouts share their states."""
    whole, _ = roll()
    part, _ = roll(SIGMAS[: steps + 1])
    assert part.sigmas[-1] == SIGMAS[steps]
    assert part.samples is part.states[-1]
    for state, same in zip(part.states, whole.states, strict=False):
        assert torch.equal(state, same)


def test_states_carry_their_levels_noise():
    """All images black: the exact velocity is x/σ, and the states at σ have the standard deviation σ, no less."""
    start = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    trajectory = CPSSampler(SIGMAS, 0.9).rollout(
        lambda latents, sigma: latents / sigma,
        start,
        step_noise=lambda step: torch.randn(4000, 1, generator=torch.Generator().manual_seed(1 + step)),
    )
    deviations = [float(state.std()) for state in trajectory.states]
    assert deviations == pytest.approx(SIGMAS, abs=0.03)


def test_gradient_flows_through_every_step():
    start = START.clone().requires_grad_()
    trajectory = CPSSampler(SIGMAS, 0.9).rollout(CountingVelocity(), start, step_noise=step_noise)
    (gradient,) = torch.autograd.grad(trajectory.samples.sum(), start)
    assert (gradient != 0).all()


@pytest.mark.parametrize("index", [slice(1, 2), [1, 0], torch.tensor([True, False])], ids=["slice", "list", "mask"])
def test_indexing_a_trajectory_takes_samples(index):
    trajectory, _ = roll()
    part = trajectory[index]
    assert part.sigmas == trajectory.sigmas
    for parts, wholes in (
        (part.states, trajectory.states),
        (part.velocities, trajectory.velocities),
        (part.noises, trajectory.noises),
    ):
        assert len(parts) == len(wholes)
        assert all(torch.equal(tensor, whole[index]) for tensor, whole in zip(parts, wholes, strict=True))
    assert torch.equal(part.samples, trajectory.samples[index])


def conditioning(count: int) -> Conditioning:
    numbers = torch.arange(float(count))
    return Conditioning(numbers[:, None, None].repeat(1, 3, 2), 10 * numbers[:, None].repeat(1, 5))


@pytest.mark.parametrize("index", [slice(1, 3), [2, 0, 2], torch.tensor([True, False, False, True])])
def test_indexing_a_conditioning_takes_prompts(index):
    whole = conditioning(4)
    part = whole[index]
    assert torch.equal(part.embeds, whole.embeds[index]) and torch.equal(part.pooled, whole.pooled[index])
    assert len(whole) == 4 and len(part) == len(whole.embeds[index])


def test_conditionings_are_joined_in_order():
    whole = conditioning(4)
    joined = Conditioning.cat([whole[2:], whole[:2]])
    assert joined.pooled[:, 0].tolist() == [20, 30, 0, 10]
    assert joined.embeds[:, 0, 0].tolist() == [2, 3, 0, 1]


def test_one_conditioning_is_expanded_and_several_are_not():
    expanded = conditioning(4)[3:4].expand(6)
    assert expanded.embeds.shape == (6, 3, 2) and expanded.pooled.shape == (6, 5)
    assert (expanded.embeds == 3).all() and (expanded.pooled == 30).all()
    with pytest.raises(AssertionError, match="this holds 4"):
        conditioning(4).expand(6)


def test_a_conditioning_moves_as_a_whole():
    moved = conditioning(2).to(torch.device("meta"))
    assert moved.embeds.device.type == moved.pooled.device.type == "meta"
