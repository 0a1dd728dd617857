"""A whole training step of stage 1: its forward passes are those of `modules/ac_dmd.py`, and each update gets its boundary."""

import math

import pytest

from rtdmd_lightning.losses import Consistency
from rtdmd_lightning.roles.roles import FAKE_SCORE, GENERATOR, TEACHER
from tests.support.known import count_passes
from tests.support.tiny import tiny_module, train

pytestmark = pytest.mark.slow

B, K = 2, 4
CYCLES = 3
VARIANTS = [
    pytest.param({"fake_update_ratio": 2}, id="one group of trajectories"),
    pytest.param({"fake_update_ratio": 5}, id="two groups of trajectories"),
    pytest.param({"fake_update_ratio": 3, "reuse_rollouts": False}, id="without reuse"),
    pytest.param({"fake_update_ratio": 2, "random_stop": False}, id="always to the last step"),
]


def rollout_samples(module, cycle):
    if module.reuse_rollouts and module.random_stop:
        return math.ceil(module.fake_update_ratio / K) * K * B
    fake_updates, generator_update = module.draw_updates(cycle)
    return sum(update.stop for update in fake_updates) * B + (generator_update.stop - 1) * B


@pytest.mark.parametrize("options", VARIANTS)
def test_forward_passes_of_whole_cycles(tiny_folder, options):
    """Counted by role, and at the transformer itself: nothing runs beside them."""
    module = tiny_module(tiny_folder, batch_size=B, **options)
    counts, seen = count_passes(module), []
    module.roles.transformer.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(len(inputs["hidden_states"])), with_kwargs=True
    )
    train(module, CYCLES)
    assert counts == {
        (GENERATOR, False): sum(rollout_samples(module, cycle) for cycle in range(CYCLES)),
        (GENERATOR, True): CYCLES * B,
        (FAKE_SCORE, True): CYCLES * module.fake_update_ratio * 3 * B,
        (FAKE_SCORE, False): CYCLES * B,
        (TEACHER, False): CYCLES * 2 * B,
    }
    assert sum(seen) == counts.total()


def test_forward_passes_of_a_cycle_without_guidance_and_without_the_regulariser(tiny_folder):
    options = {"guidance_scale": (1.0, 1.0), "consistency": Consistency(weight=0)}
    module = tiny_module(tiny_folder, batch_size=B, fake_update_ratio=2, **options)
    counts = count_passes(module)
    train(module)
    generator, fake_score = {(GENERATOR, False): K * B, (GENERATOR, True): B}, {(FAKE_SCORE, True): 2 * B}
    assert counts == generator | fake_score | {(FAKE_SCORE, False): B, (TEACHER, False): B}


@pytest.mark.parametrize("options", VARIANTS)
def test_every_update_is_at_the_boundary_and_on_the_samples_of_its_plan(tiny_folder, options):
    module = tiny_module(tiny_folder, batch_size=B, **options)
    seen = []

    def watch(name):
        original = getattr(module, name)

        def loss(step, conditioning, random, *rest):
            seen.append((name, step.sigma_next, list(random.indices)))
            return original(step, conditioning, random, *rest)

        setattr(module, name, loss)

    watch("fake_score_loss")
    watch("matching_loss")
    train(module, CYCLES)
    expected, size = [], module.batches_per_step * B
    for cycle in range(CYCLES):
        fake_updates, generator_update = module.draw_updates(cycle)
        for update in [*fake_updates, generator_update]:
            name = "matching_loss" if update is generator_update else "fake_score_loss"
            first = cycle * size + update.batch * B
            expected.append((name, module.sampler.sigmas[update.stop], [first, first + 1]))
    assert seen == expected
