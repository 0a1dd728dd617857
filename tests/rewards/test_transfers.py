"""What a scoring call copies to an accelerator, counted on fake tensors that say they are on one."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rtdmd_lightning.rewards.clipscore import ClipScoreReward
from rtdmd_lightning.rewards.preprocess import ClipPreprocess
from tests.support.tiny import REPOSITORY

CUDA = torch.device("cuda", 0)


class CopiesToDevice(TorchDispatchMode):
    """Counts the results on an accelerator of operations that were given no tensor on one but some on the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = [leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if isinstance(result, torch.Tensor) and result.device.type == "cuda":
            self.count += "cpu" in given and "cuda" not in given
        return result


@pytest.fixture
def fake_cuda():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def on_fake_cuda(network: torch.nn.Module) -> None:
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty_like(parameter, device=CUDA), False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = torch.empty_like(buffer, device=CUDA)


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_preprocessing_copies_nothing(fake_cuda, resize):
    preprocess = ClipPreprocess(32, 32, (0.4, 0.5, 0.6), (0.3, 0.2, 0.1), resize)
    images = torch.empty(2, 3, 48, 40, device=CUDA)
    with CopiesToDevice() as copies:
        assert preprocess(images).device == CUDA
    assert copies.count == 0
    with CopiesToDevice() as copies:
        images.new_tensor([0.4, 0.5, 0.6])
    assert copies.count == 1  # else nothing was counted


def test_a_clips_score_copies_the_prompts_features_alone():
    reward = ClipScoreReward(str(REPOSITORY / "checkpoints" / "tiny-clip"))
    reward.to(torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fake_cuda(reward._clip.model)
        images, prompts = torch.empty(2, 3, 48, 48, device=CUDA), ["a red circle", "a blue cross"]
        reward.score(images, prompts, [{}, {}])
        with CopiesToDevice() as copies:
            assert reward.score(images, prompts, [{}, {}]).device == CUDA
    assert copies.count == 1
