"""The fused normalisation is diffusers', to rounding."""

import copy

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from torch import nn

from rtdmd_lightning.models.normalization import FusedRMSNorm, fuse_rms_norms
from tests.support.tiny import tiny_backbone


def normalised(made: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = made(x)
    y.float().square().sum().backward()
    assert x.grad is not None
    return y, x.grad


@pytest.fixture
def pair():
    theirs = nn.Sequential(RMSNorm(16, eps=1e-6), RMSNorm(16, eps=1e-3, elementwise_affine=False))
    nn.init.normal_(theirs[0].weight)
    ours = copy.deepcopy(theirs)
    fuse_rms_norms(ours)
    assert all(isinstance(module, FusedRMSNorm) for module in ours)
    return ours, theirs


def test_in_float32(pair):
    x = torch.randn(2, 3, 5, 16)
    for one, other in zip(*(normalised(made, x) for made in pair), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_in_bfloat16_under_autocast_the_result_stays_bfloat16(pair):
    ours, theirs = (made.bfloat16() for made in pair)
    x = torch.randn(2, 3, 5, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y, gradient = normalised(ours, x)
        expected, expected_gradient = normalised(theirs, x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0.05, atol=0.2)


def test_sd3s_are_fused_and_keep_their_keys(tiny_folder):
    backbone = tiny_backbone(tiny_folder)
    bare = backbone.transformer_class.from_pretrained(tiny_folder, subfolder="transformer")
    transformer = backbone.load()
    kinds = [type(module) for module in transformer.modules()]
    assert RMSNorm not in kinds
    assert kinds.count(FusedRMSNorm) == sum(isinstance(module, RMSNorm) for module in bare.modules()) > 0
    state = transformer.state_dict()
    assert state.keys() == bare.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in bare.state_dict().items())
