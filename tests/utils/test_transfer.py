"""Tensors travel together."""

import pytest
import torch

from rtdmd_lightning.utils.transfer import send


def test_on_the_cpu_they_are_themselves():
    tensors = [torch.randn(2, 3), torch.randn(4)]
    assert all(sent is tensor for sent, tensor in zip(send(tensors, torch.device("cpu")), tensors, strict=True))


def test_elsewhere_they_share_one_buffer():
    """In their order and shapes; a scalar and an empty one too."""
    tensors = [torch.randn(2, 3), torch.tensor(1.0), torch.empty(0, 5), torch.randn(4, 2).T]
    sent = send(tensors, torch.device("meta"))
    assert [tensor.shape for tensor in sent] == [tensor.shape for tensor in tensors]
    assert len({tensor.untyped_storage()._cdata for tensor in sent}) == 1
    assert [tensor.storage_offset() for tensor in sent] == [0, 6, 7, 7]


def test_one_buffer_has_one_dtype():
    with pytest.raises(AssertionError, match="bfloat16"):
        send([torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)], torch.device("meta"))


def test_the_values_are_those_that_were_given(monkeypatch):
    """The buffer as it leaves the CPU."""
    left = []
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *args, **kw: left.append(self.clone()) or to(self, *args, **kw)
    )
    tensors = [torch.randn(2, 3), torch.randn(4, 2).T]
    send(tensors, torch.device("meta"))
    assert torch.equal(left[0], torch.cat([tensor.flatten() for tensor in tensors]))


@pytest.mark.parametrize("available", [False, True])
def test_the_buffer_is_pinned_where_there_is_an_accelerator(monkeypatch, available):
    """Pinning itself needs one, so what is asked of torch is looked at."""
    asked = []
    empty = torch.empty
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory, **kw: asked.append(pin_memory) or empty(*args, **kw))
    send([torch.randn(2)], torch.device("meta"))
    assert asked == [available]
