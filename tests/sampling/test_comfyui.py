"""ComfyUI's settings that come closest: `simple` has the method's levels, `euler_ancestral` is CPS at an eta near 0.65."""

import itertools
import math

import pytest
import torch

from rtdmd_lightning.objectives import clean_from_velocity, cps_step, shift_sigmas
from tests.support import comfyui


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_simple_has_the_methods_levels(shift):
    expected = shift_sigmas([1000, 750, 500, 250], shift=shift)
    assert comfyui.simple_schedule(4, shift) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shift", "etas"), [(1.0, [0.72, 0.67, 0.72]), (3.0, [0.69, 0.62, 0.67]), (math.exp(1.15), [0.68, 0.62, 0.66])]
)
def test_euler_ancestral_is_a_cps_step_at_another_eta(shift, etas):
    """SD3 has shift 3, FLUX.1 e^1.15 at a megapixel."""
    levels, found = comfyui.simple_schedule(4, shift), []
    for sigma, sigma_next in itertools.pairwise(levels):
        sample, velocity, noise = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)).double()
        theirs = comfyui.ancestral_step(
            sample, clean_from_velocity(sample, velocity, sigma=sigma), sigma, sigma_next, noise
        )
        kept = (1 - sigma_next) * (sigma_next / sigma) / (1 - sigma_next**2 / sigma)  # of the noise that is there
        found.append(2 / math.pi * math.acos(kept))
        ours = cps_step(sample, velocity, sigma=sigma, sigma_next=sigma_next, eta=found[-1], noise=noise)
        torch.testing.assert_close(theirs, ours)
    assert found == pytest.approx(etas, abs=0.006)
