"""A whole epoch of stage 2: either way of reinforcement alone raises the reward; samples without an advantage are left out."""

from itertools import product

import pytest
import torch

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import FinalStepSettings, PolicySettings
from rtdmd_lightning.modules.optimization import OptimizerSettings
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.roles import FAKE_SCORE, GENERATOR, TEACHER
from tests.support.known import count_passes
from tests.support.tiny import train
from tests.support.tiny_rtdmd import Redness, RednessOfCircles, save_cold_start, tiny_rtdmd_module

pytestmark = pytest.mark.slow

MICRO_BATCHES = 8
# A large eps makes AdamW's first step proportional to the gradient.
OPTIMIZER = OptimizerSettings(learning_rate=3e-2, eps=1e-2, max_grad_norm=100.0)


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


def only(reward):
    return RewardMixture([reward], {reward.name: 1.0}, [reward.name])


@pytest.mark.parametrize(
    ("policy", "reward_weight", "samples"), [(0.0, 1.0, 32), (1.0, 0.0, 256)], ids=["back-propagation", "policy"]
)
def test_one_epoch_raises_the_reward(tiny_folder, cold_start, policy, reward_weight, samples):
    """On other prompts and noises than were trained on. The policy gradient is an estimate and wants more samples."""
    module = tiny_rtdmd_module(
        tiny_folder,
        cold_start,
        rewards=only(Redness()),
        policy=PolicySettings(weight=policy),
        final_step=FinalStepSettings(matching_weight=0.0, reward_weight=reward_weight),
        generator_optimizer=OPTIMIZER,
        images_per_prompt=32,
        batch_size=32,
        micro_batches=samples // 32,
    )
    probe = PromptBatch(["a red circle", "two crosses"] * 32, [{}] * 64, list(range(5000, 5064)))
    before = reward_of(module, probe)
    train(module)
    assert reward_of(module, probe) - before > 5e-5


def reward_of(module, batch):
    _, _, images = module.explore.sample(batch, 0, range(3))
    return float(module.explore.score(images, batch)["redness"].mean())


def test_the_generators_gradient_is_the_mean_over_samples_with_an_advantage(tiny_folder, cold_start):
    """`1/(kept·(T+1))·Σ` of each kept sample's losses, computed one sample and one step at a time. The micro-batches hold two
    groups, of which both, one or none have differing rewards."""
    module = tiny_rtdmd_module(
        tiny_folder,
        cold_start,
        rewards=only(RednessOfCircles()),
        final_step=FinalStepSettings(matching_weight=0.5, reward_weight=2.0),
        images_per_prompt=2,
        micro_batches=MICRO_BATCHES,
        generator_optimizer=OPTIMIZER,
    )
    counts = count_passes(module)
    kept = compare_gradients(module, counts)
    assert set(kept) == {0, 2, 4}
    samples, nonempty = 4 * MICRO_BATCHES, 4 * sum(count > 0 for count in kept)
    assert counts == {
        (GENERATOR, False): 4 * samples,
        (GENERATOR, True): 2 * nonempty + sum(kept),
        (FAKE_SCORE, True): 3 * samples,
        (FAKE_SCORE, False): sum(kept),
        (TEACHER, False): 2 * sum(kept),
    }


@pytest.mark.parametrize("policy", [0.0, 1.0], ids=["the last step alone", "the stochastic steps alone"])
def test_the_mean_is_over_the_steps_that_are_trained(tiny_folder, cold_start, policy):
    module = tiny_rtdmd_module(
        tiny_folder,
        cold_start,
        rewards=only(Redness()),
        policy=PolicySettings(weight=policy),
        final_step=FinalStepSettings(matching_weight=0.0, reward_weight=2.0 * (1 - policy)),
        images_per_prompt=2,
        micro_batches=2,
        generator_optimizer=OPTIMIZER,
    )
    assert compare_gradients(module, count_passes(module)) == [4, 4]


def compare_gradients(module, counts):
    """Train an epoch whose gradient must be the one worked out by sample; returns how many samples of each micro-batch had an
    advantage. `counts` are left as the epoch alone makes them."""
    kept, gradients = [], {}
    update_generator, step_optimizer = module.update_generator, module.optimize.step

    def watched_update(rollouts, epoch, chosen):
        kept.extend(int((rollout.advantages != 0).sum()) for rollout in rollouts)
        before = counts.copy()
        gradients["expected"] = gradient_by_sample(module, rollouts, epoch, chosen)
        counts.clear()
        counts.update(before)
        update_generator(rollouts, epoch, chosen)

    def watched_step(role):
        if role == GENERATOR:
            gradients["actual"] = flat(p.grad for p in module.roles.parameters_of(GENERATOR))
        return step_optimizer(role)

    module.update_generator, module.optimize.step = watched_update, watched_step
    train(module)
    assert gradients["expected"].norm() > 1e-2
    torch.testing.assert_close(gradients["actual"], gradients["expected"], rtol=1e-3, atol=1e-6)
    return kept


def gradient_by_sample(module, rollouts, epoch, chosen):
    total, kept = torch.zeros(()), 0
    final = bool(module.final_step.matching_weight or module.final_step.reward_weight)
    for rollout, row in product(rollouts, range(4)):
        if row not in module.kept_rows(rollout):
            continue
        kept += 1
        rows = slice(row, row + 1)
        states = tuple(state[rows] for state in rollout.states)
        log_probs = {step: values[rows] for step, values in rollout.log_probs.items()}
        alone = Rollout(rollout.batch[rows], states, log_probs, rollout.advantages[rows])
        if final:
            total = total + module.final_loss(alone, [0], module.matching.draw_guidance(module.seed, epoch))
        total = total + sum(module.stochastic_loss(alone, step) for step in chosen)
    parameters = module.roles.parameters_of(GENERATOR)
    return flat(torch.autograd.grad(total / (kept * (len(chosen) + final)), parameters, materialize_grads=True))


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


class Indifferent(Redness):
    """Has a gradient, of zeros, and one value."""

    name = "indifferent"

    def score(self, images, prompts, metadata):
        return 0.3 + 0 * super().score(images, prompts, metadata)


def test_an_epoch_without_any_advantage_leaves_the_generator_as_it_is(tiny_folder, cold_start):
    """And ends: the fake score is trained, the epoch counts."""
    module = tiny_rtdmd_module(tiny_folder, cold_start, rewards=only(Indifferent()))
    before = {role: flat(module.roles.parameters_of(role)) for role in (GENERATOR, FAKE_SCORE)}
    counts = count_passes(module)
    trainer = train(module)
    assert trainer.global_step == 1 and trainer.callback_metrics["policy/kept_samples"] == 0
    assert torch.equal(flat(module.roles.parameters_of(GENERATOR)), before[GENERATOR])
    assert not torch.equal(flat(module.roles.parameters_of(FAKE_SCORE)), before[FAKE_SCORE])
    assert counts == {(GENERATOR, False): 4 * 16, (FAKE_SCORE, True): 3 * 16}
