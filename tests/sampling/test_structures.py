"""The dataclasses that travel: what a family's conditioning lacks stays lacking."""

import pytest
import torch

from rtdmd_lightning.sampling.structures import Conditioning


def rows(count, *, pooled=True, guidance=True):
    return Conditioning(
        torch.arange(count * 6.0).view(count, 2, 3),
        torch.arange(count * 4.0).view(count, 4) if pooled else None,
        torch.arange(count * 1.0) if guidance else None,
    )


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("guidance", [True, False])
def test_slices_put_together_again_are_the_whole(pooled, guidance):
    whole = rows(4, pooled=pooled, guidance=guidance)
    again = Conditioning.cat([whole[:1], whole[1:4]])
    torch.testing.assert_close(again.embeds, whole.embeds, rtol=0, atol=0)
    for part, expected in ((again.pooled, whole.pooled), (again.guidance, whole.guidance)):
        assert (part is None) == (expected is None)
        assert part is None or torch.equal(part, expected)


def test_one_prompts_conditioning_serves_many_samples():
    many = rows(3)[2:].expand(5)
    assert many.pooled is not None and many.guidance is not None
    assert many.embeds.shape == (5, 2, 3) and many.pooled.shape == (5, 4)
    assert many.guidance.tolist() == [2.0] * 5


def test_parts_of_different_families_do_not_go_together():
    with pytest.raises(AssertionError, match="lack"):
        Conditioning.cat([rows(1), rows(1, pooled=False)])
