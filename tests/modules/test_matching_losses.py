"""AC-DMD's losses by value: with known velocity fields and draws they are what METHOD section 3 writes down."""

import pytest
import torch

from rtdmd_lightning.losses import Consistency
from rtdmd_lightning.sampling.structures import ExecutedStep
from rtdmd_lightning.utils.randomness import SampleRandom
from tests.support.known import (
    COS,
    SIN,
    KnownDraws,
    cps_mean,
    linear,
    mean_abs,
    per_sample,
    randn,
    renoised,
    with_fields,
)
from tests.support.tiny import tiny_module

PROMPTS = ["a red circle", "two crosses"]
B = len(PROMPTS)
UNIFORM = torch.tensor([0.2, 0.7])
GUIDANCE, CONDITIONAL, UNCONDITIONAL, FAKE = 3.0, 0.8, 0.5, -0.6
TEACHER = UNCONDITIONAL + GUIDANCE * (CONDITIONAL - UNCONDITIONAL)


def setting(folder, **options):
    module = tiny_module(folder, **options)
    return module, module.embed(PROMPTS, torch.device("cpu"))


def with_constant_pull(module):
    """A teacher whose two branches of CFG, and a fake score whose only one, are constants."""
    empty = module.embed([""], torch.device("cpu")).pooled

    def teacher(latents, levels, conditioning):
        prompted = (conditioning.pooled != empty).any(dim=1).float()
        return torch.ones_like(latents) * per_sample(UNCONDITIONAL + (CONDITIONAL - UNCONDITIONAL) * prompted)

    with_fields(module, teacher=teacher, fake_score=lambda latents, *_: torch.full_like(latents, FAKE))


def a_step(module, stop, *, next_state=None, velocity=None):
    """An executed step of arbitrary tensors: the losses must take each of them from where METHOD says."""
    state, velocity = randn(B, 1), randn(B, 2) if velocity is None else velocity
    return ExecutedStep(
        module.sampler.sigmas[stop - 1], module.sampler.sigmas[stop], state, velocity, randn(B, 3), next_state
    )


@pytest.mark.parametrize("normalizer", ["paper", "noise_free"])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_the_gradient_at_x_s_is_the_documented_pull(tiny_folder, stop, normalizer):
    """`g = -c·(F - T)/norm` with METHOD's `c = t(1-s) - s(1-t)·cos(ηπ/2)`, and T the guided teacher."""
    module, conditioning = setting(tiny_folder, normalizer=normalizer)
    with_constant_pull(module)
    x, z, z_back, s = randn(B, 4).requires_grad_(), randn(B, 5), randn(B, 6), module.sampler.sigmas[stop]
    step = a_step(module, stop, next_state=x)
    draws = KnownDraws([UNIFORM], [z, z_back])
    loss = module.generator_matching_loss(step, conditioning, draws, GUIDANCE, "update")
    loss.backward()

    t, _, x_t = renoised(x.detach(), s, UNIFORM, z)
    if normalizer == "paper":
        norm = mean_abs(x.detach() - cps_mean(x_t, torch.tensor(TEACHER), t, s) - s * SIN * z_back)
    else:
        norm = (1 - s) * mean_abs((step.state - step.sigma * step.velocity) - (x_t - t * TEACHER))
    g = -(t * (1 - s) - s * (1 - t) * COS) * (FAKE - TEACHER) / norm
    g = g.expand_as(x)
    torch.testing.assert_close(x.grad * x.numel(), g, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(loss.detach(), 0.5 * (g**2).mean(), rtol=1e-3, atol=0)


def test_without_sub_intervals_the_clean_prediction_is_pulled(tiny_folder):
    """DMD2: at s = 0 the pull is `t·(T - F)` over its normaliser, and reaches the velocity through x̂0 = x - σ·v."""
    module, conditioning = setting(tiny_folder, sub_interval=False)
    with_constant_pull(module)
    velocity, z = randn(B, 2).requires_grad_(), randn(B, 5)
    step = a_step(module, 2, next_state=randn(B, 4), velocity=velocity)
    draws = KnownDraws([UNIFORM], [z, randn(B, 6)])
    module.generator_matching_loss(step, conditioning, draws, GUIDANCE, "update").backward()

    x = (step.state - step.sigma * velocity).detach()
    g = ((TEACHER - FAKE) / mean_abs(x - z + TEACHER)).expand_as(x)
    torch.testing.assert_close(velocity.grad * velocity.numel(), -step.sigma * g, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("start", [-1.0, 3.0])
def test_descending_the_generators_loss_moves_it_towards_the_teacher(tiny_folder, stop, start):
    """A generator and a fake score that agree, and a teacher elsewhere: in every segment they are drawn to it."""
    module, conditioning = setting(tiny_folder)
    weight = torch.tensor(start, requires_grad=True)
    with_fields(
        module,
        generator=lambda latents, *_: weight + 0 * latents,
        fake_score=lambda latents, *_: weight + 0 * latents,
        teacher=lambda latents, *_: torch.ones_like(latents),
    )
    random = SampleRandom(0, [4, 5], torch.device("cpu"))
    trajectory = module.roll_out("generator", conditioning, random, stop)
    module.generator_loss(trajectory, stop, conditioning, random, GUIDANCE).backward()
    assert (weight.grad < 0) == (start < 1) and weight.grad.abs() > 1e-4


@pytest.mark.parametrize("target", ["ambient", "rao_blackwell"])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_the_fake_score_learns_the_velocity_of_the_renoised_samples(tiny_folder, stop, target):
    """`mean(clamp(1/σ_ts², 0, 10)·σ_ts²·(F - u)²)`, with u of the option."""
    module, conditioning = setting(tiny_folder, fake_target=target, consistency=Consistency(weight=0))
    with_fields(module, fake_score=linear(0.3))
    x, z, s = randn(B, 4), randn(B, 5), module.sampler.sigmas[stop]
    step = a_step(module, stop, next_state=x)
    loss = module.fake_score_loss(step, conditioning, KnownDraws([UNIFORM], [z]), "update")

    t, width, x_t = renoised(x, s, UNIFORM, z)
    if target == "ambient":
        u = -x / (1 - s) + (t + (1 - t) * s**2 / (1 - s) ** 2) / width * z
    else:
        fresh = (1 - t) / (1 - s) * s * SIN
        u = -x_t / (1 - t) + t / (1 - t) * (fresh * step.noise + width * z) / (fresh**2 + width**2)
    weight = (1 / width**2).clamp(0, 10)
    torch.testing.assert_close(loss, (weight * width**2 * (0.3 * x_t - u) ** 2).mean(), rtol=1e-3, atol=0)
