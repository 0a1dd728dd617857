"""Flow-GRPO: its step, its loss written by hand, inner updates that leave a ratio of 1, an epoch that raises the reward."""

import pytest
import torch

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.method.sde import sde_mean_std
from rtdmd_lightning.modules.flow_grpo import FlowGRPOModule
from rtdmd_lightning.modules.optimization import OptimizerSettings
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.roles import EMA, GENERATOR
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import move_adapters, tiny_backbone, train
from tests.support.tiny_rtdmd import Redness, save_cold_start

OPTIMIZER = OptimizerSettings(learning_rate=3e-2, eps=1e-2, max_grad_norm=100.0)


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


def module_of(folder, cold_start, **options):
    settings = {
        "batch_size": 8,
        "rewards": RewardMixture([Redness()], {"redness": 1.0}, back_propagated=[]),
        "lora": LoraSettings(rank=4, alpha=8),
        "images_per_prompt": 4,
        "micro_batches": 2,
        "clip_range": 0.2,
        "generator_optimizer": OPTIMIZER,
    }
    module = FlowGRPOModule(tiny_backbone(folder), cold_start=str(cold_start), **settings | options)
    module.configure_model()
    move_adapters(module)
    return module


@pytest.mark.parametrize("sigma", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_sde_step_is_flow_grpos(sigma, eta):
    """In the arrangement of its public code, `x·(1 + s²/(2σ)·dt) + v·(1 + s²(1-σ)/(2σ))·dt`, worked out beside ours."""
    x, v = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    sigma_next, dt = 0.4, 0.4 - sigma
    s = eta * (sigma / (1 - (0.9 if sigma == 1 else sigma))) ** 0.5
    expected = x * (1 + s**2 / (2 * sigma) * dt) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
    mean, std = sde_mean_std(x, v, sigma=sigma, sigma_next=sigma_next, eta=eta, largest=0.9)
    torch.testing.assert_close(mean, expected)
    assert float(std) == pytest.approx(s * (-dt) ** 0.5)
    if eta == 0:
        torch.testing.assert_close(mean, x + dt * v)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("sde", 4), ("cps", 3)])
def test_the_gradient_is_that_of_the_clipped_objective_on_all_stochastic_steps(tiny_folder, cold_start, name, steps):
    """`mean over samples and steps of max(-A·ρ, -A·clip(ρ))`, with each step's Gaussian written by its sampler's mean."""
    module = module_of(tiny_folder, cold_start, sampler_name=name, inner_updates=1)
    assert list(module.trained_steps) == list(range(steps))
    seen = {}
    update = module.update_generator

    def watched(rollouts, *, counts):
        seen["expected"] = by_hand(module, rollouts)
        update(rollouts, counts=counts)

    step = module.optimize.step

    def watched_step(role, *, counts):
        seen["actual"] = torch.cat([p.grad.flatten() for p in module.roles.parameters_of(GENERATOR)])
        return step(role, counts=counts)

    module.update_generator, module.optimize.step = watched, watched_step
    train(module)
    assert seen["expected"].norm() > 1e-3
    torch.testing.assert_close(seen["actual"], seen["expected"], rtol=1e-3, atol=1e-6)


def by_hand(module, rollouts):
    losses = []
    for rollout in rollouts:
        conditioning = module.embed(rollout.batch.prompts, module.device)
        for number in module.trained_steps:
            state, reached = rollout.states[number], rollout.states[number + 1]
            sigma, sigma_next = module.sampler.sigmas[number : number + 2]
            velocity = module.roles.velocity(GENERATOR, state, sigma, conditioning)
            mean, _ = module.sampler.mean_std(state, velocity, sigma=sigma, sigma_next=sigma_next)
            log_prob = -((reached - mean) ** 2).mean(dim=(1, 2, 3))
            ratio = torch.exp(log_prob - rollout.log_probs[number])
            advantage = rollout.advantages.clamp(-5, 5)
            losses.append(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean())
    with module.roles.role(GENERATOR):
        gradients = torch.autograd.grad(torch.stack(losses).mean(), module.roles.parameters_of(GENERATOR))
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.slow
def test_inner_updates_leave_the_ratio_of_1_and_count_as_one_epoch(tiny_folder, cold_start):
    deviations = {}
    for inner in (1, 3):
        module = module_of(tiny_folder, cold_start, inner_updates=inner)
        trainer = train(module, 2)
        assert trainer.global_step == 2
        deviations[inner] = float(trainer.callback_metrics["policy/ratio_deviation"])
    assert deviations[1] < 1e-5 < 1e-3 < deviations[3]


@pytest.mark.slow
def test_an_epoch_raises_the_reward(tiny_folder, cold_start):
    module = module_of(
        tiny_folder,
        cold_start,
        sampler_name="cps",
        images_per_prompt=32,
        batch_size=32,
        micro_batches=8,
        inner_updates=1,
    )
    probe = PromptBatch(["a red circle", "two crosses"] * 32, [{}] * 64, list(range(5000, 5064)))
    before = reward_of(module, probe)
    train(module)
    assert reward_of(module, probe) - before > 5e-5


def reward_of(module, batch):
    _, _, images = module.explore.sample(batch, 0, ())
    return float(module.explore.score(images, batch)["redness"].mean())


def test_there_is_no_teacher_and_no_fake_score(tiny_folder, cold_start):
    module = module_of(tiny_folder, cold_start)
    assert set(module.roles.own) == {GENERATOR, EMA}
    assert len(module.configure_optimizers()) == 1


@pytest.mark.parametrize("option", ["inner_updates", "micro_batches", "images_per_prompt"])
def test_impossible_counts_are_refused(tiny_folder, cold_start, option):
    with pytest.raises(UserError, match=f"model.{option}"):
        module_of(tiny_folder, cold_start, **{option: 0})
