"""The learning rate over a run, and what a sampler refuses."""

import pytest

from rtdmd_lightning.losses import Consistency, FinalStepSettings, PolicySettings
from rtdmd_lightning.modules.optimization import OptimizerSettings
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.sampling.sampler import SamplerSettings
from rtdmd_lightning.utils.errors import UserError


def test_the_rate_falls_linearly_over_the_last_steps():
    settings = OptimizerSettings(learning_rate=2.0, decay_steps=4)
    rates = [settings.learning_rate_at(step, 10) for step in range(10)]
    assert rates == pytest.approx([2, 2, 2, 2, 2, 2, 2, 1.5, 1, 0.5])


@pytest.mark.parametrize(("decay_steps", "max_steps"), [(0, 10), (4, -1)])
def test_it_is_constant_without_a_decay_or_an_end(decay_steps, max_steps):
    settings = OptimizerSettings(learning_rate=2.0, decay_steps=decay_steps)
    assert settings.learning_rate_at(9, max_steps) == 2.0


@pytest.mark.parametrize("options", [{"eta": 1.1}, {"draw_eta": -0.1}])
def test_a_stochasticity_outside_its_range_is_refused(options):
    with pytest.raises(UserError, match=rf"model\.sampler\.{next(iter(options))} must lie in \[0, 1\]"):
        SamplerSettings(**options)


@pytest.mark.parametrize(
    ("settings", "name", "bad", "good"),
    [
        *[(OptimizerSettings, name, -1e-9, 0.0) for name in ("learning_rate", "weight_decay", "eps")],
        (OptimizerSettings, "learning_rate", float("nan"), 1.0),
        (OptimizerSettings, "decay_steps", -1, 0),
        (OptimizerSettings, "max_grad_norm", 0.0, 1e-9),
        (OptimizerSettings, "betas", (0.9, 1.0), (0.0, 0.999)),
        (Consistency, "weight", -0.01, 0.0),
        (Consistency, "moves", 0, 1),
        (Consistency, "max_delta", 0, 1),
        (Consistency, "max_delta", 1001, 1000),
        (PolicySettings, "weight", -1.0, 0.0),
        (PolicySettings, "kl_weight", -1.0, 0.0),
        (PolicySettings, "trained_steps", -1, 0),
        (PolicySettings, "clip_range", 0.0, 1e-9),
        (PolicySettings, "advantage_clip", 0.0, 1e-9),
        (FinalStepSettings, "matching_weight", -1.0, 0.0),
        (FinalStepSettings, "reward_weight", -1.0, 0.0),
        (FinalStepSettings, "reward_ceiling", float("inf"), -1.0),
        (FinalStepSettings, "decode_chunk", 0, 1),
        (LoraSettings, "rank", 0, 1),
        (LoraSettings, "alpha", 0, 1),
        (LoraSettings, "targets", [], None),
    ],
)
def test_a_number_outside_its_range_is_refused_by_name(settings, name, bad, good):
    with pytest.raises(UserError, match=rf"model\..*{name} must"):
        settings(**{name: bad})
    settings(**{name: good})
