"""The learning rate over a run, and what a sampler refuses."""

import pytest

from rtdmd_lightning.errors import UserError
from rtdmd_lightning.modules.settings import OptimizerSettings, SamplerSettings


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
