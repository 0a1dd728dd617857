"""Stage 2's rollouts: which steps are trained, whose noise each step has, and the log-probabilities that are kept of them."""

from collections import Counter
from itertools import combinations, pairwise

import pytest
import torch

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import PolicySettings
from tests.support.known import COS, SIN, with_fields
from tests.support.tiny_rtdmd import save_cold_start, tiny_rtdmd_module

PROMPTS = ["a red circle", "a red circle", "two crosses", "two crosses"]
STOCHASTIC = range(3)


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


def batch(first=8):
    return PromptBatch(PROMPTS, [{}] * 4, list(range(first, first + 4)))


def standing(tiny_folder, cold_start, **policy):
    """A module whose generator's velocity is 0: x̂0 and ε̂ are both the state, and the noise of a step can be read off."""
    module = tiny_rtdmd_module(tiny_folder, cold_start, policy=PolicySettings(**policy))
    with_fields(module, generator=lambda latents, *_: torch.zeros_like(latents))
    return module


def noises(module, states):
    """z of each stochastic step, from `x' = (1-σ' + σ'·cos)·x + σ'·sin·z`."""
    levels = module.sampler.sigmas[1:-1]
    return [
        (after - (1 - level + level * COS) * before) / (level * SIN)
        for level, (before, after) in zip(levels, pairwise(states[:-1]), strict=True)
    ]


def all_differ(noise):
    return all((noise[i] - noise[j]).abs().max() > 0.5 for i, j in combinations(range(len(noise)), 2))


@pytest.mark.parametrize("chosen", list(combinations(STOCHASTIC, 2)))
def test_a_group_shares_the_noise_of_unselected_steps_and_of_no_other(tiny_folder, cold_start, chosen):
    module = standing(tiny_folder, cold_start)
    states, _, _ = module.explore.sample(batch(), 3, chosen)
    assert all_differ(states[0])
    for step, noise in enumerate(noises(module, states)):
        assert abs(noise.std() - 1) < 0.1
        if step in chosen:
            assert all_differ(noise)
        else:
            torch.testing.assert_close(noise[0::2], noise[1::2], rtol=0, atol=1e-5)
            assert all_differ(noise[0::2])


def test_shared_noise_is_a_function_of_prompt_step_and_epoch_and_own_noise_of_the_sample(tiny_folder, cold_start):
    """Other samples of a prompt, in another batch or on another rank, share it; another epoch, step or seed has another."""
    module = standing(tiny_folder, cold_start)
    (own, *shared), (own_there, *there), (_, *later) = (
        noises(module, module.explore.sample(batch(first), epoch, [0])[0]) for first, epoch in ((8, 3), (40, 3), (8, 4))
    )
    assert all_differ(torch.cat([own, own_there]))
    for one, other, next_epoch in zip(shared, there, later, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert all_differ(torch.stack([one[0], next_epoch[0]]))
    assert all_differ(torch.stack([noise[0] for noise in shared]))
    module.seed = 1
    other_seed = noises(module, module.explore.sample(batch(), 3, [0])[0])
    assert all_differ(torch.stack([shared[0][0], other_seed[1][0]]))


def test_without_shared_noise_every_step_is_each_samples_own(tiny_folder, cold_start):
    module = standing(tiny_folder, cold_start, shared_noise=False)
    states, _, _ = module.explore.sample(batch(), 3, [0, 2])
    assert all(all_differ(noise) for noise in noises(module, states))


@pytest.mark.parametrize("exact", [False, True])
def test_log_probabilities_are_kept_of_the_trained_steps(tiny_folder, cold_start, exact):
    """METHOD's `-mean((x' - mean)²)`, in which the noise alone is left, or the density of `N(mean, std²)`."""
    module = standing(tiny_folder, cold_start, exact_log_prob=exact)
    states, log_probs, _ = module.explore.sample(batch(), 3, [0, 2])
    assert sorted(log_probs) == [0, 2]
    for step, log_prob in log_probs.items():
        noise, std = noises(module, states)[step], module.sampler.sigmas[step + 1] * SIN
        expected = -((std * noise) ** 2).mean(dim=(1, 2, 3))
        if exact:
            expected = torch.distributions.Normal(0.0, std).log_prob(std * noise).sum(dim=(1, 2, 3))
        torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=0)


def test_images_are_the_decoded_last_state(tiny_folder, cold_start):
    module = standing(tiny_folder, cold_start)
    states, _, images = module.explore.sample(batch(), 3, [0, 1])
    assert len(states) == 5
    torch.testing.assert_close(states[-1], states[-2])  # at velocity 0, x̂0 is the state
    torch.testing.assert_close(images, module.backbone.decode(states[-1]).clamp(0, 1))


def test_the_trained_steps_are_drawn_anew_and_evenly_in_every_epoch(tiny_folder, cold_start):
    module = tiny_rtdmd_module(tiny_folder, cold_start)
    drawn = [tuple(module.policy.choose(module.seed, epoch, module.sampler.steps)) for epoch in range(300)]
    assert drawn == [tuple(module.policy.choose(module.seed, epoch, module.sampler.steps)) for epoch in range(300)]
    counts = Counter(drawn)
    assert counts.keys() == set(combinations(STOCHASTIC, 2)) and min(counts.values()) > 75  # 100, deviation 8
    assert 70 < sum(one == other for one, other in pairwise(drawn)) < 130
    module.seed = 1
    assert drawn != [tuple(module.policy.choose(module.seed, epoch, module.sampler.steps)) for epoch in range(300)]


@pytest.mark.parametrize("trained_steps", [1, 3])
def test_another_number_of_trained_steps(tiny_folder, cold_start, trained_steps):
    policy = PolicySettings(trained_steps=trained_steps)
    module = tiny_rtdmd_module(tiny_folder, cold_start, policy=policy)
    drawn = {tuple(module.policy.choose(module.seed, epoch, module.sampler.steps)) for epoch in range(40)}
    assert drawn == set(combinations(STOCHASTIC, trained_steps))


@pytest.mark.parametrize(("trained_steps", "steps"), [(1, [0]), (1, [2, 0]), (2, [0, 2])])
def test_steps_are_chosen_among_those_that_may_be(tiny_folder, cold_start, trained_steps, steps):
    policy = PolicySettings(trained_steps=trained_steps, steps=steps)
    module = tiny_rtdmd_module(tiny_folder, cold_start, policy=policy)
    drawn = {tuple(module.policy.choose(module.seed, epoch, module.sampler.steps)) for epoch in range(40)}
    assert drawn == set(combinations(sorted(steps), trained_steps))
