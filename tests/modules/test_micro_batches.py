"""Micro-batches change what a pass takes, and nothing else: update, noise and logged numbers are the whole batch's."""

from collections import Counter

import pytest
import torch

from rtdmd_lightning.data.stream import samples_per_pass
from rtdmd_lightning.modules.diffusion_nft import DiffusionNFTModule
from rtdmd_lightning.modules.flow_grpo import FlowGRPOModule
from rtdmd_lightning.modules.optimization import OptimizerSettings
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import tiny_backbone, tiny_module, train
from tests.support.tiny_rtdmd import Contrast, Redness, RednessOfCircles, save_cold_start, tiny_rtdmd_module

# A large eps makes AdamW's first step proportional to the gradient: rounding cannot flip a step's sign.
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, eps=1e-2)
OPTIMIZERS = {"generator_optimizer": OPTIMIZER, "fake_optimizer": OPTIMIZER}


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


def after(module, steps=2):
    """The trained module's own adapters, what it logged, and how many samples its passes took of which role."""
    passes: Counter = Counter()
    velocity = module.roles.velocity

    def counting(role, latents, *arguments):
        passes[role, len(latents)] += 1
        return velocity(role, latents, *arguments)

    module.roles.velocity = counting
    before = {key: value.clone() for key, value in module.state_dict().items()}
    metrics = train(module, steps).callback_metrics
    logged = {name: value for name, value in metrics.items() if not name.startswith("time/")}
    return before, module.state_dict(), logged, passes


def assert_same_run(whole, parts):
    before, expected, logged, passes = whole
    _, state, of_parts, smaller = parts
    assert max((expected[key] - before[key]).abs().max() for key in expected) > 1e-4
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=1e-5, msg=key)
    assert of_parts.keys() == logged.keys()
    for name, value in logged.items():
        torch.testing.assert_close(of_parts[name], value, rtol=1e-4, atol=1e-5, msg=name)
    samples = [Counter(), Counter()]
    for of_role, counted in zip((passes, smaller), samples, strict=True):
        for (role, count), times in of_role.items():
            counted[role] += count * times
    assert samples[0] == samples[1]  # nothing is computed twice


@pytest.mark.parametrize("options", [{}, {"reuse_rollouts": False}], ids=["shared trajectories", "a rollout an update"])
def test_stage_1(tiny_folder, options):
    options = options | OPTIMIZERS | {"fake_update_ratio": 5}
    whole, parts = (after(tiny_module(tiny_folder, micro_batch_size=size, **options)) for size in (None, 2))
    assert_same_run(whole, parts)
    assert max(count for _, count in parts[3]) == 4  # two samples, or two branches of them
    assert max(count for _, count in whole[3]) == 8


# A prompt without a circle gives its group no advantage, so micro-batches differ in how many of their samples count.
SOME = {"rewards": RewardMixture([RednessOfCircles()], {"redness_of_circles": 1.0}, ["redness_of_circles"])}


@pytest.mark.slow
@pytest.mark.parametrize("rewards", [{}, SOME], ids=["all", "some"])
def test_stage_2(tiny_folder, cold_start, rewards):
    """A group of four images spans two micro-batches of two, and advantages are made among all samples."""
    whole, parts = (
        after(tiny_rtdmd_module(tiny_folder, cold_start, micro_batch_size=size, **OPTIMIZERS, **rewards))
        for size in (None, 2)
    )
    assert_same_run(whole, parts)
    assert max(count for _, count in parts[3]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [FlowGRPOModule, DiffusionNFTModule])
def test_the_baselines(tiny_folder, cold_start, algorithm):
    def of(size):
        module = algorithm(
            tiny_backbone(tiny_folder),
            batch_size=4,
            rewards=RewardMixture([Redness(), Contrast()], {"redness": 1.0, "contrast": 1.0}, ["redness"]),
            cold_start=str(cold_start),
            images_per_prompt=4,
            micro_batches=2,
            lora=LoraSettings(rank=4, alpha=8),
            generator_optimizer=OPTIMIZER,
            micro_batch_size=size,
        )
        module.configure_model()
        return after(module)

    assert_same_run(of(None), of(2))


def test_noise_is_the_samples_own(tiny_folder):
    """Bit for bit: a micro-batch's rollout starts where the whole batch's does."""
    starts = []
    for size in (None, 1):
        module = tiny_module(tiny_folder, micro_batch_size=size)
        begun: list[torch.Tensor] = []
        rollout = module.sampler.rollout
        module.sampler.rollout = lambda velocity, noise, begun=begun, rollout=rollout, **options: (
            begun.append(noise) or rollout(velocity, noise, **options)
        )
        train(module)
        starts.append(torch.cat(begun))
    assert len(starts[0]) == 12 and torch.equal(*starts)


@pytest.mark.parametrize(("batch", "processes", "micro", "expected"), [(72, 8, None, 9), (72, 8, 3, 3), (72, 1, 1, 1)])
def test_samples_of_a_pass(batch, processes, micro, expected):
    assert samples_per_pass(batch, processes, micro) == expected


@pytest.mark.parametrize(("processes", "micro"), [(8, 2), (8, 18), (1, 16)])
def test_a_micro_batch_that_does_not_divide_is_refused(processes, micro):
    with pytest.raises(UserError, match=r"model\.micro_batch_size"):
        samples_per_pass(72, processes, micro)
