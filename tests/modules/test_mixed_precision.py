"""Updates under bf16-mixed: what is computed in float32, and with which weights."""

import pytest
import torch
from torch import nn

from rtdmd_lightning.losses import FinalStepSettings, PolicySettings
from rtdmd_lightning.modules.optimization import OptimizerSettings
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.roles import FAKE_SCORE, GENERATOR
from tests.support.tiny import tiny_module, train
from tests.support.tiny_rtdmd import save_cold_start, tiny_rtdmd_module

CPU = torch.device("cpu")


class Tower(Reward):
    """A linear layer in float32. In its backward pass it looks at the gradient that arrives at the images."""

    name = "tower"
    differentiable = True

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 32 * 32, 1).requires_grad_(False)
        self.gradients: list[torch.Tensor] = []
        self.autocast: list[bool] = []

    def score(self, images, prompts, metadata):
        flat = images.flatten(1)
        if flat.requires_grad:
            flat.register_hook(self.look)
        return self.layer(flat).flatten().tanh()

    def look(self, gradient: torch.Tensor) -> None:
        self.gradients.append(gradient)
        self.autocast.append(torch.is_autocast_enabled("cpu"))


@pytest.mark.slow
def test_a_float32_reward_is_back_propagated_in_float32(tiny_folder, tmp_path):
    tower = Tower()
    module = tiny_rtdmd_module(
        tiny_folder,
        save_cold_start(tiny_folder, tmp_path),
        rewards=RewardMixture([tower], {"tower": 1.0}, ["tower"]),
        policy=PolicySettings(weight=0.0),
        final_step=FinalStepSettings(matching_weight=0.0, reward_weight=1.0),
        micro_batches=1,
    )
    train(module, precision="bf16-mixed")
    assert tower.autocast and not any(tower.autocast)
    for gradient in tower.gradients:
        assert gradient.dtype == torch.float32
        assert (gradient != gradient.bfloat16().float()).float().mean() > 0.9  # of bfloat16 products all would be equal


@pytest.mark.slow
def test_what_is_computed_again_has_the_autocast_of_the_first_time(tiny_folder):
    """Though the backward pass has none: with gradient checkpointing the gradients are the same, bit for bit."""
    norms = []
    for checkpointing in (False, True):
        module = tiny_module(
            tiny_folder, {"gradient_checkpointing": checkpointing, "dtype": "bfloat16"}, fake_update_ratio=1
        )
        step, of_run = module.optimize.step, []
        module.optimize.step = lambda role, step=step, of_run=of_run: of_run.append(step(role)) or of_run[-1]
        train(module, precision="bf16-mixed")
        norms.append(of_run)
    assert len(norms[0]) == 2 and all(map(torch.equal, *norms))


@pytest.mark.slow
def test_after_a_step_the_new_weights_are_used(tiny_folder):
    """Autocast's own cache would keep a weight's half-precision copy till the training step ends; Lightning switches it off."""
    fast = OptimizerSettings(learning_rate=0.1)
    module = tiny_module(tiny_folder, fake_update_ratio=2, generator_optimizer=fast, fake_optimizer=fast)
    conditioning = module.embed(["a red circle"], CPU)
    latents = torch.randn(1, *module.backbone.latent_shape())
    step, differences = module.optimize.step, []

    def velocity(role):
        return module.roles.velocity(role, latents, 0.5, conditioning).detach()

    def watched(role):
        before = velocity(role)
        norm = step(role)
        after = velocity(role)
        torch.clear_autocast_cache()
        differences.append((role, (after - before).abs().max(), (after - velocity(role)).abs().max()))
        return norm

    module.optimize.step = watched
    train(module, precision="bf16-mixed")
    assert [role for role, *_ in differences] == [FAKE_SCORE, FAKE_SCORE, GENERATOR]
    for role, moved, stale in differences:
        assert moved > 1e-2 and stale == 0, role
