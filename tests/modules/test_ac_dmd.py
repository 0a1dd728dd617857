"""Losses of AC-DMD: reuse changes nothing but the cost, the options do what they say."""

import pytest
import torch
from lightning import Trainer

from rtdmd_lightning import objectives
from rtdmd_lightning.losses import Consistency, RenoiseSettings, matching
from rtdmd_lightning.modules.optimization import EMASettings
from rtdmd_lightning.roles.roles import FAKE_SCORE, GENERATOR
from rtdmd_lightning.sampling.sampler import SamplerSettings
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.randomness import SampleRandom
from tests.support.losses import fake_loss, generator_loss
from tests.support.tiny import tiny_module

CPU = torch.device("cpu")
PROMPTS = ["a photo of a red circle", "a photo of two crosses", "a icon of a square above a circle"]


def setting(folder, **options):
    module = tiny_module(folder, **options)
    random = SampleRandom(0, [4, 5, 6], CPU)
    return module, module.embed(PROMPTS, CPU), random


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_boundary_of_a_whole_trajectory_is_a_random_stop_rollout(tiny_folder, stop):
    module, conditioning, random = setting(tiny_folder)
    whole = module.roll_out(GENERATOR, conditioning, random)
    stopped = module.roll_out(GENERATOR, conditioning, random, steps=stop)
    torch.testing.assert_close(whole.states[stop], stopped.samples)
    losses = [fake_loss(module, t, stop, conditioning, random, 0).item() for t in (whole, stopped)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    before = module.roll_out(GENERATOR, conditioning, random, steps=stop - 1)
    losses = [generator_loss(module, t, stop, conditioning, random, 3.0).item() for t in (whole, before)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_last_step_of_the_generator_update_is_the_trajectorys(tiny_folder, monkeypatch):
    """With gradient, but the same sample: the generator's loss is taken at the very boundary that the rollout reached."""
    module, conditioning, random = setting(tiny_folder)
    whole = module.roll_out(GENERATOR, conditioning, random)
    seen = {}
    original = matching.renoise_from
    monkeypatch.setattr(
        matching, "renoise_from", lambda start, *rest: seen.update(start=start) or original(start, *rest)
    )
    generator_loss(module, whole, 3, conditioning, random, 3.0)
    torch.testing.assert_close(seen["start"], whole.states[3])


def test_dmd2_is_flow_matching_on_the_clean_prediction(tiny_folder, monkeypatch):
    module, conditioning, random = setting(tiny_folder, sub_interval=False, consistency=Consistency(weight=0))
    trajectory = module.roll_out(GENERATOR, conditioning, random)
    clean = objectives.clean_from_velocity(
        trajectory.states[1], trajectory.velocities[1], sigma=module.sampler.sigmas[1]
    )
    interval = matching.renoise_from(clean, 0.0, random, "fake update 0", "interval", 3.0)
    velocity = module.roles.velocity(FAKE_SCORE, interval.end, interval.sigma_end, conditioning)
    weight = (10 * interval.sigma_end**2).clamp_max(1).view(-1, 1, 1, 1)
    expected = (weight * (velocity - (interval.noise - clean)) ** 2).mean()
    actual = fake_loss(module, trajectory, 2, conditioning, random, 0)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_dmd2_of_the_authors_is_plain_flow_matching_at_logit_normal_levels(tiny_folder):
    """Unit weight, `t = shift(i/1000)` with `i = floor(1000·sigmoid(n)) + 1`, the target ε - x0."""
    module, conditioning, random = setting(
        tiny_folder,
        sub_interval=False,
        consistency=Consistency(weight=0),
        fake_weight="unit",
        renoise=RenoiseSettings("logit_normal", "uniform"),
    )
    trajectory = module.roll_out(GENERATOR, conditioning, random)
    clean = objectives.clean_from_velocity(
        trajectory.states[1], trajectory.velocities[1], sigma=module.sampler.sigmas[1]
    )
    raw = (torch.floor(1000 / (1 + torch.exp(-random.normal("fake update 0 level", ())))) + 1) / 1000
    level, noise = 3 * raw / (1 + 2 * raw), random.normal("fake update 0 noise", clean.shape[1:])
    x_t = (1 - level).view(-1, 1, 1, 1) * clean + level.view(-1, 1, 1, 1) * noise
    velocity = module.roles.velocity(FAKE_SCORE, x_t, level, conditioning)
    expected = ((velocity - (noise - clean)) ** 2).mean()
    torch.testing.assert_close(fake_loss(module, trajectory, 2, conditioning, random, 0), expected)


def test_dmd2s_generator_compares_clean_predictions_at_uniform_entries_of_the_table(tiny_folder):
    module, conditioning, random = setting(
        tiny_folder, sub_interval=False, renoise=RenoiseSettings("logit_normal", "uniform")
    )
    trajectory = module.roll_out(GENERATOR, conditioning, random)
    x0 = objectives.clean_from_velocity(trajectory.states[1], trajectory.velocities[1], sigma=module.sampler.sigmas[1])
    raw = (torch.floor(1000 * random.uniform("generator update level")).clamp(20, 980) + 1) / 1000
    level, noise = 3 * raw / (1 + 2 * raw), random.normal("generator update noise", x0.shape[1:])
    t = level.view(-1, 1, 1, 1)
    x_t = (1 - t) * x0 + t * noise
    teacher = x_t - t * module.roles.teacher_velocity(x_t, level, conditioning, module.embed([""], CPU), 3.0)
    fake = x_t - t * module.roles.velocity(FAKE_SCORE, x_t, level, conditioning)
    pull = (fake - teacher) / (x0 - teacher).abs().mean(dim=(1, 2, 3), keepdim=True)
    loss = generator_loss(module, trajectory, 2, conditioning, random, 3.0)
    torch.testing.assert_close(loss, 0.5 * (pull**2).mean(), rtol=1e-4, atol=0)


def test_levels_of_the_table_are_refused_above_a_stopped_rollout(tiny_folder):
    with pytest.raises(UserError, match=r"model\.renoise"):
        tiny_module(tiny_folder, renoise=RenoiseSettings("logit_normal", "uniform"))


def test_gradients_reach_the_role_that_is_updated_and_no_other(tiny_folder):
    module, conditioning, random = setting(tiny_folder)
    trajectory = module.roll_out(GENERATOR, conditioning, random)
    for role, loss in (
        (FAKE_SCORE, fake_loss(module, trajectory, 2, conditioning, random, 0)),
        (GENERATOR, generator_loss(module, trajectory, 2, conditioning, random, 3.0)),
    ):
        module.zero_grad()
        with module.roles.role(role):
            loss.backward()
        touched = {path for path, p in module.roles.transformer.named_parameters() if p.grad is not None}
        assert touched and all(f".{role}." in path for path in touched)


def test_rao_blackwell_target_lowers_the_fake_loss_of_the_first_segment(tiny_folder):
    losses = {}
    for target in ("ambient", "rao_blackwell"):
        module, conditioning, random = setting(tiny_folder, fake_target=target, consistency=Consistency(weight=0))
        trajectory = module.roll_out(GENERATOR, conditioning, random)
        losses[target] = fake_loss(module, trajectory, 1, conditioning, random, 0).item()
    assert losses["rao_blackwell"] < 0.2 * losses["ambient"]


@pytest.mark.parametrize("option", [{"fake_target": "rao_blackwell"}, {"normalizer": "noise_free"}])
@pytest.mark.parametrize("sub_interval", [True, False])
@pytest.mark.parametrize("transition", ["cps", "posterior"])
def test_every_option_gives_finite_losses_at_every_stop(tiny_folder, option, sub_interval, transition):
    module, conditioning, random = setting(
        tiny_folder, sub_interval=sub_interval, consistency=Consistency(transition=transition, moves=2), **option
    )
    trajectory = module.roll_out(GENERATOR, conditioning, random)
    for stop in range(1, 5):
        assert torch.isfinite(fake_loss(module, trajectory, stop, conditioning, random, 0))
        assert torch.isfinite(generator_loss(module, trajectory, stop, conditioning, random, 3.0))


def test_guidance_is_drawn_in_its_range_once_per_cycle(tiny_folder):
    module, *_ = setting(tiny_folder, guidance_scale=(2.0, 6.0))
    drawn = [module.matching.draw_guidance(module.seed, cycle) for cycle in range(50)]
    assert all(2 <= scale < 6 for scale in drawn) and max(drawn) - min(drawn) > 3
    assert drawn == [module.matching.draw_guidance(module.seed, cycle) for cycle in range(50)]


def test_ema_follows_its_formula(tiny_folder):
    """Two moves are one with the decay squared."""
    module, *_ = setting(tiny_folder, ema=EMASettings(decay=0.9))
    average, live = module.roles.parameters_of("generator_ema"), module.roles.parameters_of(GENERATOR)
    expected = [0.81 * a.detach() + 0.19 * p.detach() for a, p in zip(average, live, strict=True)]
    module._trainer = Trainer(logger=False, enable_checkpointing=False)  # whose global step is 0
    module.move_average(2)
    for ours, wanted in zip(average, expected, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": (5.0, 2.0)}, "guidance_scale must be a range"),
        ({"fake_update_ratio": 0}, "fake_update_ratio must be at least 1"),
    ],
)
def test_impossible_options_are_refused(tiny_folder, options, message):
    with pytest.raises(UserError, match=message):
        tiny_module(tiny_folder, **options)


@pytest.mark.parametrize("settings", [{"steps": [500, 750]}, {"steps": []}, {"steps": [1000, 0]}, {"eta": 1.5}])
def test_impossible_samplers_are_refused(settings):
    with pytest.raises(UserError, match=r"model\.sampler"):
        SamplerSettings(**settings)


def test_eta_zero_warns_that_the_two_samples_coincide(tiny_folder):
    with pytest.warns(UserWarning, match="coincide"):
        tiny_module(tiny_folder, sampler=SamplerSettings(eta=0.0))
