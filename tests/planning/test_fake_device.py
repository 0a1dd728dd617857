"""The accelerator that is not there: its dtypes are a GPU's, and its backward pass is torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from rtdmd_lightning.planning.backward import releasing, walk_backward
from rtdmd_lightning.planning.fake_device import FAKE_DEVICE, faked
from rtdmd_lightning.planning.tracking import AllocationTracker


def leaves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in [(4, 8), (8, 8), (8,)]]


def loss_of(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """With a checkpoint, a node of several outputs, one that is used twice, and gradients that are summed and cast."""
    hidden = checkpoint(lambda x: (x @ weight + bias).tanh(), x, use_reentrant=False)
    left, right = hidden.chunk(2, dim=1)
    both = torch.cat([left * right, right.double().float()], dim=1)
    return F.layer_norm(both, (8,)).square().mean() + (hidden * bias).sum()


@pytest.fixture
def in_python(monkeypatch):
    """The backward pass of tensors that have numbers, as `faked` walks through it."""
    monkeypatch.setattr(torch.autograd, "_engine_run_backward", walk_backward)
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 0)
    with releasing():
        yield


def test_gradients_are_those_of_torchs_engine(request):
    expected = leaves()
    for _ in range(2):  # the second time they are added
        loss_of(*expected).backward()
    request.getfixturevalue("in_python")
    found = leaves()
    for _ in range(2):
        loss_of(*found).backward()
    for leaf, other in zip(found, expected, strict=True):
        assert leaf.grad is not None and torch.equal(leaf.grad, other.grad)


def test_as_much_is_held_as_by_torchs_engine(request):
    def peak() -> int:
        weights = [torch.zeros(64, 64, requires_grad=True) for _ in range(4)]
        with AllocationTracker() as tracker:
            x = torch.zeros(1000, 64)
            for weight in weights:
                x = (x @ weight).exp()
            x.sum().backward()
            assert tracker.current < 1000 * 64 * 4 * 4  # saved tensors are gone while the graph is still there
        return tracker.peak

    expected = peak()
    request.getfixturevalue("in_python")
    assert peak() == expected


def test_a_graph_that_is_not_retained_is_walked_once(in_python):
    loss = leaves()[0].exp().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(AssertionError, match="not retained"):
        loss.backward()


def test_autocast_is_that_of_a_gpu():
    with faked():
        x, weight = (torch.zeros(8, 8, device=FAKE_DEVICE, requires_grad=True) for _ in range(2))
        heads = torch.zeros(2, 4, 16, 64, device=FAKE_DEVICE)
        with torch.autocast(FAKE_DEVICE.type, torch.bfloat16):
            assert (x @ weight).dtype == F.scaled_dot_product_attention(heads, heads, heads).dtype == torch.bfloat16
            normal = F.layer_norm(x @ weight, (8,))
        assert normal.dtype == torch.float32 and normal.device == FAKE_DEVICE
        normal.sum().backward()
        assert weight.grad is not None and (weight.grad.device, weight.grad.dtype) == (FAKE_DEVICE, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_holds_no_scores(dtype):
    with faked(), AllocationTracker() as tracker:
        heads = torch.zeros(1, 1, 4096, 64, device=FAKE_DEVICE, dtype=dtype, requires_grad=True)
        F.scaled_dot_product_attention(heads, heads, heads).sum().backward()
    assert tracker.peak < 4096 * 4096 * dtype.itemsize


def test_a_tensor_of_the_cpu_among_the_devices_is_refused():
    with faked(), pytest.raises(RuntimeError, match="device"):
        torch.zeros(3, device=FAKE_DEVICE) + torch.zeros(3)


def test_all_is_as_before_afterwards():
    engine, attention = torch.autograd._engine_run_backward, F.scaled_dot_product_attention
    with faked():
        assert torch.autograd._engine_run_backward is not engine
    assert torch.autograd._engine_run_backward is engine and F.scaled_dot_product_attention is attention
