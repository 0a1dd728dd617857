"""No forward pass that is not needed: the counts stated in `modules/ac_dmd.py`."""

from collections import Counter

import pytest
import torch

from rtdmd_lightning.losses import Consistency
from rtdmd_lightning.modules.ac_dmd import Update
from rtdmd_lightning.roles.roles import FAKE_SCORE, GENERATOR, TEACHER
from rtdmd_lightning.utils.randomness import SampleRandom
from tests.support.losses import fake_loss, generator_loss
from tests.support.tiny import tiny_module

BATCH, STEPS = 3, 4


class Counted:
    """A module whose velocity counts samples per role (and passes per role) instead of running the transformer."""

    def __init__(self, folder, **options):
        self.module = tiny_module(folder, batch_size=BATCH, **options)
        self.samples, self.passes = Counter(), Counter()
        self.module.roles.velocity = self.velocity
        self.random = SampleRandom(0, list(range(BATCH)), torch.device("cpu"))
        self.conditioning = self.module.embed(["a red circle"] * BATCH, torch.device("cpu"))

    def velocity(self, role, latents, sigma, conditioning):
        assert len(latents) == len(conditioning)
        self.samples[role] += len(latents)
        self.passes[role] += 1
        return 0.1 * latents.detach().clone().requires_grad_(torch.is_grad_enabled())

    def trajectory(self, steps=STEPS):
        trajectory = self.module.roll_out(GENERATOR, self.conditioning, self.random, steps=steps)
        self.samples.clear(), self.passes.clear()
        return trajectory


def test_a_rollout_costs_one_pass_per_executed_step(tiny_folder):
    for steps in (1, STEPS):
        counted = Counted(tiny_folder)
        counted.module.roll_out(GENERATOR, counted.conditioning, counted.random, steps=steps)
        assert counted.samples == {GENERATOR: steps * BATCH}


@pytest.mark.parametrize(
    ("consistency", "samples", "passes"),
    [
        (Consistency(weight=0), BATCH, 1),
        (Consistency(), 3 * BATCH, 2),
        (Consistency(samples=1), 2 * BATCH, 2),
        (Consistency(moves=2), 5 * BATCH, 3),
    ],
)
@pytest.mark.parametrize("sub_interval", [True, False])
def test_fake_score_update(tiny_folder, consistency, samples, passes, sub_interval):
    counted = Counted(tiny_folder, consistency=consistency, sub_interval=sub_interval)
    fake_loss(counted.module, counted.trajectory(), 2, counted.conditioning, counted.random)
    assert (counted.samples, counted.passes) == ({FAKE_SCORE: samples}, {FAKE_SCORE: passes})


@pytest.mark.parametrize(("guidance_scale", "teacher"), [(3.0, 2 * BATCH), (1.0, BATCH)])
def test_generator_update(tiny_folder, guidance_scale, teacher):
    counted = Counted(tiny_folder)
    generator_loss(counted.module, counted.trajectory(), 2, counted.conditioning, counted.random, guidance_scale)
    assert counted.samples == {GENERATOR: BATCH, TEACHER: teacher, FAKE_SCORE: BATCH}
    assert counted.passes == {GENERATOR: 1, TEACHER: 1, FAKE_SCORE: 1}


@pytest.mark.parametrize(("ratio", "groups"), [(1, 1), (4, 1), (5, 2), (10, 3)])
def test_with_reuse_a_cycle_uses_every_boundary_at_most_once(tiny_folder, ratio, groups):
    module = tiny_module(tiny_folder, fake_update_ratio=ratio)
    assert module.batches_per_step == groups
    for cycle in range(20):
        fake_updates, generator_update = module.draw_updates(cycle)
        assert len(fake_updates) == len(set(fake_updates)) == ratio
        assert {update.batch for update in [*fake_updates, generator_update]} <= set(range(groups))
        assert {update.stop for update in [*fake_updates, generator_update]} <= set(range(1, STEPS + 1))
    if ratio % STEPS == 0:
        assert set(fake_updates) == {Update(g, s) for g in range(groups) for s in range(1, STEPS + 1)}


def test_without_reuse_every_fake_score_update_has_its_own_samples(tiny_folder):
    """And the generator's update those of the last one, as the authors have it."""
    module = tiny_module(tiny_folder, fake_update_ratio=3, reuse_rollouts=False)
    fake_updates, generator_update = module.draw_updates(0)
    assert [update.batch for update in [*fake_updates, generator_update]] == [0, 1, 2, 2]
    stops = {update.stop for cycle in range(40) for update in module.draw_updates(cycle)[0]}
    assert stops == {1, 2, 3, 4}
    fixed = tiny_module(tiny_folder, fake_update_ratio=3, random_stop=False)
    assert {update.stop for update in fixed.draw_updates(0)[0]} == {STEPS}
