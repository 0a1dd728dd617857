"""Within-prompt diversity, by hand."""

import pytest
import torch

from rtdmd_lightning.callbacks.diversity import DiversitySettings, within_prompt_diversity
from rtdmd_lightning.utils.errors import UserError


def grey(*levels):
    """One image each, evenly of that brightness."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_of_even_images_it_is_the_mean_difference_of_their_brightness():
    groups = torch.stack([grey(0.0, 0.3, 0.6), grey(0.0, 1.0, 1.0), grey(0.5, 0.5, 0.5)])
    expected = torch.tensor([(0.3 + 0.6 + 0.3) / 3, 2 / 3, 0.0])
    torch.testing.assert_close(within_prompt_diversity(groups), expected)


def test_of_two_images_it_is_their_root_mean_square_difference_whatever_their_size():
    for side in (4, 32):
        pair = torch.rand(1, 2, 3, side, side, generator=torch.Generator().manual_seed(0))
        expected = (pair[:, 0] - pair[:, 1]).square().mean().sqrt()
        torch.testing.assert_close(within_prompt_diversity(pair)[0], expected)
    # Independent and uniform: the square root of a sixth.
    assert float(expected) == pytest.approx(6**-0.5, abs=0.01)


def test_groups_do_not_meet():
    """Two prompts whose images differ from each other's, but not among themselves."""
    assert within_prompt_diversity(torch.stack([grey(0.1, 0.1), grey(0.9, 0.9)])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("options", [{"images_per_prompt": 1}, {"prompts": 0}])
def test_there_is_none_without_pairs(options):
    with pytest.raises(UserError, match="one or more prompts with two or more images each"):
        DiversitySettings(**options)
