"""DiffusionNFT: its loss in closed form, where it pulls, the old policy, an epoch that raises the reward."""

import pytest
import torch

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import total
from rtdmd_lightning.modules.diffusion_nft import OLD, DiffusionNFTModule, nft_terms
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


def module_of(folder, cold_start, moved=True, **options):
    settings = {
        "batch_size": 8,
        "rewards": RewardMixture([Redness()], {"redness": 1.0}, back_propagated=[]),
        "lora": LoraSettings(rank=4, alpha=8),
        "images_per_prompt": 4,
        "micro_batches": 2,
        "generator_optimizer": OPTIMIZER,
    }
    module = DiffusionNFTModule(tiny_backbone(folder), cold_start=str(cold_start), **settings | options)
    module.configure_model()
    if moved:
        move_adapters(module)
    return module


def randn(seed):
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_loss_in_closed_form(beta):
    """Two weighted squared errors of clean predictions, each over its own mean absolute error."""
    clean, noise, velocity, old = (randn(seed) for seed in range(4))
    sigma, goodness = 0.7, torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    noised = (1 - sigma) * clean + sigma * noise
    expected = torch.zeros((), dtype=torch.float64)
    for row in range(3):
        plus = noised[row] - sigma * ((1 - beta) * old[row] + beta * velocity[row]) - clean[row]
        minus = noised[row] - sigma * ((1 + beta) * old[row] - beta * velocity[row]) - clean[row]
        share = goodness[row]
        expected += share * (plus**2).mean() / plus.abs().mean()
        expected += (1 - share) * (minus**2).mean() / minus.abs().mean()
    loss = total(nft_terms(clean, noised, velocity, old, goodness, sigma=sigma, beta=beta))
    torch.testing.assert_close(loss, expected / 3)


def test_a_good_sample_pulls_the_velocity_to_it_and_a_bad_one_away(tiny_folder):
    """At the old policy itself: the two pulls are opposite, and where goodness is a half they cancel."""
    clean, noise = randn(0), randn(1)
    sigma, old = 0.7, randn(2)
    noised = (1 - sigma) * clean + sigma * noise
    pulls = {}
    for goodness in (0.0, 0.5, 1.0):
        velocity = old.clone().requires_grad_()
        share = torch.full((3,), goodness, dtype=torch.float64)
        loss = total(nft_terms(clean, noised, velocity, old, share, sigma=sigma, beta=1.0))
        (gradient,) = torch.autograd.grad(loss, velocity)
        pulls[goodness] = (-gradient * (noise - clean - old)).sum()  # towards the sample's own velocity
    assert pulls[1.0] > 0.1 and pulls[0.0] == pytest.approx(-pulls[1.0])
    assert abs(pulls[0.5]) < 1e-9


def test_old_policy_and_average_start_as_the_generator(tiny_folder, cold_start):
    module = module_of(tiny_folder, cold_start, moved=False)
    assert set(module.roles.own) == {GENERATOR, EMA, OLD}
    for name in (EMA, OLD):
        pairs = zip(module.roles.parameters_of(name), module.roles.parameters_of(GENERATOR), strict=True)
        assert all(torch.equal(copy, own) for copy, own in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "most"), [(0.0, 0.5), (0.4, 0.5)])
def test_the_old_policy_follows_at_a_falling_pace(tiny_folder, cold_start, rate, most):
    """After epoch n it keeps `min(rate·n, most)` of itself."""
    module = module_of(tiny_folder, cold_start, old_decay_rate=rate, old_decay_max=most, moved=False)
    history = []
    move_average = module.roles.move_average

    def watched(kept, name=EMA):
        before = [p.clone() for p in module.roles.parameters_of(name)]
        move_average(kept, name)
        if name == OLD:
            after, generator = module.roles.parameters_of(name), module.roles.parameters_of(GENERATOR)
            for old, now, live in zip(before, after, generator, strict=True):
                torch.testing.assert_close(now, kept * old + (1 - kept) * live)
            history.append(kept)

    module.roles.move_average = watched
    train(module, 3)
    assert history == pytest.approx([min(rate * epoch, most) for epoch in (1, 2, 3)])


@pytest.mark.slow
def test_an_epoch_raises_the_reward(tiny_folder, cold_start):
    module = module_of(tiny_folder, cold_start, images_per_prompt=32, batch_size=32, micro_batches=8, moved=False)
    probe = PromptBatch(["a red circle", "two crosses"] * 32, [{}] * 64, list(range(5000, 5064)))
    module.explore.role = GENERATOR
    before = reward_of(module, probe)
    module.explore.role = OLD
    train(module)
    module.explore.role = GENERATOR
    assert reward_of(module, probe) - before > 5e-5


def reward_of(module, batch):
    _, _, images = module.explore.sample(batch, 0, ())
    return float(module.explore.score(images, batch)["redness"].mean())


@pytest.mark.parametrize(("option", "value"), [("beta", 0.0), ("old_decay_max", 1.0), ("old_decay_rate", -1.0)])
def test_impossible_options_are_refused(tiny_folder, cold_start, option, value):
    with pytest.raises(UserError, match=f"model.{option}"):
        module_of(tiny_folder, cold_start, **{option: value})
