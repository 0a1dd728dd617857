"""Stage 2's losses by value: with known velocity fields and rollouts they are what METHOD section 4 writes down."""

import pytest
import torch

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import FinalStepSettings, PolicySettings
from rtdmd_lightning.rewards.mixture import RewardMixture
from tests.support.known import SIN, KnownDraws, cps_mean, linear, mean_abs, randn, with_fields
from tests.support.tiny_rtdmd import Contrast, Redness, save_cold_start, tiny_rtdmd_module

B = 5
CLIP, ADVANTAGE_CLIP = 1e-3, 4.0
ADVANTAGES = torch.tensor([2.0, -1.0, 9.0, 0.0, -6.0])
CUT = torch.tensor([2.0, -1.0, 4.0, 0.0, -4.0])
GENERATOR, COLD_START, TEACHER, FAKE = 0.3, -0.2, 0.9, -0.5
DRIFTS = (  # of the log-probabilities since the rollout: within the clip range, beyond it to either side
    pytest.param([0.0] * B, id="none"),
    pytest.param([5e-4, -5e-4, -2e-4, 1e-4, 3e-4], id="small"),
    pytest.param([0.01, 0.02, -0.03, 0.01, -0.01], id="large"),
)


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


def setting(tiny_folder, cold_start, **options):
    """A module whose velocities are a constant each, but for the generator's `slope·x`."""
    module = tiny_rtdmd_module(tiny_folder, cold_start, **options)
    slope = torch.tensor(GENERATOR, requires_grad=True)
    with_fields(
        module,
        generator=linear(slope),
        cold_start=linear(COLD_START),
        teacher=lambda latents, *_: torch.full_like(latents, TEACHER),
        fake_score=lambda latents, *_: torch.full_like(latents, FAKE),
    )
    return module, slope


def rollout_of(module, step=0, log_prob=None):
    """States that the stochastic step reached from the mean, and others that no step connects."""
    states = [randn(B, seed) for seed in range(5)]
    t, t_next = module.sampler.sigmas[step], module.sampler.sigmas[step + 1]
    states[step + 1] = cps_mean(states[step], GENERATOR * states[step], t, t_next) + t_next * SIN * randn(B, 9)
    batch = PromptBatch([f"prompt {i}" for i in range(B)], [{}] * B, list(range(10, 10 + B)))
    return Rollout(batch, tuple(states), {} if log_prob is None else {step: log_prob}, ADVANTAGES)


def log_prob_by_hand(module, rollout, step, slope, exact):
    t, t_next = module.sampler.sigmas[step], module.sampler.sigmas[step + 1]
    state, reached = rollout.states[step], rollout.states[step + 1]
    mean = cps_mean(state, slope * state, t, t_next)
    if exact:
        return torch.distributions.Normal(mean, t_next * SIN).log_prob(reached).sum(dim=(1, 2, 3))
    return -((reached - mean) ** 2).mean(dim=(1, 2, 3))


def compare(loss, expected, slope, rtol=1e-3):
    """Values and gradients."""
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=1e-5)
    gradient, wanted = (torch.autograd.grad(value, slope)[0] for value in (loss, expected))
    assert wanted.abs() > 1e-3
    torch.testing.assert_close(gradient, wanted, rtol=rtol, atol=0)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("step", range(3))
@pytest.mark.parametrize("drift", DRIFTS)
def test_the_policy_loss_is_the_clipped_objective_of_cut_advantages(tiny_folder, cold_start, drift, step, exact):
    """`Σ max(-A·ρ, -A·clip(ρ, 1-c, 1+c))` with A cut to ±`advantage_clip`, times the policy's weight."""
    policy = PolicySettings(weight=0.5, clip_range=CLIP, advantage_clip=ADVANTAGE_CLIP, exact_log_prob=exact)
    module, slope = setting(tiny_folder, cold_start, policy=policy)
    drift = torch.tensor(drift)
    old = log_prob_by_hand(module, rollout_of(module, step), step, GENERATOR, exact) - drift
    rollout = rollout_of(module, step, old)

    log_prob = log_prob_by_hand(module, rollout, step, slope, exact)
    ratio = torch.exp(log_prob - old)
    worse = torch.maximum(-CUT * ratio, -CUT * ratio.clamp(1 - CLIP, 1 + CLIP))
    rtol = 5e-3 if exact else 1e-3  # a sum of 256 log densities in float32
    compare(module.stochastic_loss(rollout, step), 0.5 * worse.sum(), slope, rtol)


def test_with_the_updates_own_log_probabilities_a_later_update_compares_with_the_first_ones(tiny_folder, cold_start):
    """Whatever the rollout's were: the ratio is 1 in the first, and then how far the weights have moved since."""
    clip_range = 0.5
    policy = PolicySettings(clip_range=clip_range, advantage_clip=ADVANTAGE_CLIP, old_log_prob="update")
    module, slope = setting(tiny_folder, cold_start, policy=policy)
    rollout = rollout_of(module, 0, torch.full((B,), 7.0))
    old = log_prob_by_hand(module, rollout, 0, GENERATOR, exact=False)
    for moved in (0.0, 0.3):
        slope.data.fill_(GENERATOR + moved)
        ratio = torch.exp(log_prob_by_hand(module, rollout, 0, slope, exact=False) - old)
        worse = torch.maximum(-CUT * ratio, -CUT * ratio.clamp(1 - clip_range, 1 + clip_range))
        compare(module.stochastic_loss(rollout, 0), worse.sum(), slope)
        assert bool((ratio == 1).all()) == (moved == 0)


def test_a_sample_with_a_positive_advantage_becomes_more_probable(tiny_folder, cold_start):
    """The sign alone, by a step down the loss: `Σ A·logp` rises."""
    module, slope = setting(tiny_folder, cold_start)
    old = log_prob_by_hand(module, rollout_of(module), 0, GENERATOR, False)
    rollout = rollout_of(module, 0, old)
    module.stochastic_loss(rollout, 0).backward()
    moved = log_prob_by_hand(module, rollout, 0, GENERATOR - 1e-2 * slope.grad.sign(), False)
    assert (ADVANTAGES * (moved - old)).sum() > 1e-4


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("step", range(3))
def test_the_kl_term_pulls_samples_with_an_advantage_back_to_the_cold_start(tiny_folder, cold_start, step, exact):
    """Adds `kl_weight·Σ mean((mean - mean_ref)²)/(2·std²)`, over pixels the mean, or the sum: the Gaussians' own divergence."""
    losses, kl_weight = [], 0.7
    for weight in (0.0, kl_weight):
        policy = PolicySettings(exact_log_prob=exact, kl_weight=weight)
        module, slope = setting(tiny_folder, cold_start, policy=policy)
        old = log_prob_by_hand(module, rollout_of(module, step), step, GENERATOR, exact)
        rollout = rollout_of(module, step, old)
        loss = module.stochastic_loss(rollout, step)
        losses.append((loss, torch.autograd.grad(loss, slope, retain_graph=True)[0]))

    state, t, t_next = rollout.states[step], module.sampler.sigmas[step], module.sampler.sigmas[step + 1]
    mean, reference = (cps_mean(state, a * state, t, t_next) for a in (slope, COLD_START))
    squared = (mean - reference) ** 2 / (2 * (t_next * SIN) ** 2)
    kl = squared.sum(dim=(1, 2, 3)) if exact else squared.mean(dim=(1, 2, 3))
    expected = kl_weight * kl[ADVANTAGES != 0].sum()
    torch.testing.assert_close(losses[1][0] - losses[0][0], expected, rtol=5e-3, atol=0)
    gradient = torch.autograd.grad(expected, slope)[0]
    assert gradient > 0  # descending moves the generator's 0.3 towards the cold start's -0.2
    torch.testing.assert_close(losses[1][1] - losses[0][1], gradient, rtol=5e-3, atol=0)


@pytest.mark.parametrize(("matching_weight", "reward_weight"), [(0.3, 0.0), (0.0, 0.7), (0.3, 0.7)])
def test_the_final_steps_loss_is_the_pull_and_the_hinge_with_their_weights(
    tiny_folder, cold_start, matching_weight, reward_weight
):
    """`Σ matching_weight·L_G + reward_weight·relu(ceiling - Σ w·r)` over the kept rows, through x̂0 of the last state.

    The best row is above the ceiling; the reward without a gradient is no part of the sum.
    """
    rewards = RewardMixture([Redness(), Contrast()], {"redness": 2.0, "contrast": 1.0}, ["redness"])
    module, slope = setting(tiny_folder, cold_start, rewards=rewards)
    rollout, rows = rollout_of(module), [0, 2, 3]
    state, sigma = rollout.states[3][rows], module.sampler.sigmas[3]
    x = state - sigma * slope * state

    z = randn(len(rows), 7)
    g = ((TEACHER - FAKE) / mean_abs(x - z + TEACHER)).detach().expand_as(x)  # at s = 0, where t cancels out
    matching = 0.5 * ((x - (x - g).detach()) ** 2).mean()
    images = module.backbone.decode(x).clamp(0, 1)
    reward = 2 * (images[:, 0] - images[:, 1]).mean(dim=(1, 2)).tanh()
    ceiling = float(reward.detach().sort().values[-2:].mean())
    hinge = (ceiling - reward).clamp_min(0).mean()
    expected = len(rows) * (matching_weight * matching + reward_weight * hinge)

    module.final_step = FinalStepSettings(matching_weight, reward_weight, ceiling, decode_chunk=2)
    module.build_losses()
    asked, draws = [], KnownDraws([torch.tensor([0.1, 0.5, 0.9])], [z, randn(len(rows), 8)])
    module.random_of = lambda batch: asked.append(batch.indices) or draws
    compare(module.final_loss(rollout, rows, 3.0), expected, slope)
    assert asked == [[10, 12, 13]]


def test_a_process_without_an_advantage_computes_along_with_weight_zero(tiny_folder, cold_start):
    """Sharded forward passes need every rank; the loss has a gradient, of zeros."""
    final_step = FinalStepSettings(0.3, 0.7)
    module, slope = setting(tiny_folder, cold_start, final_step=final_step)
    loss = module.final_loss(rollout_of(module), [], 3.0)
    loss.backward()
    assert loss == 0 and slope.grad == 0
