"""The LoRA layer is PEFT's to rounding, and switching roles costs one assignment."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from rtdmd_lightning.roles.roles import FAKE_SCORE, GENERATOR
from rtdmd_lightning.roles.stacked import StackedLinear, inject, select_together
from tests.support.tiny import tiny_module

IN, OUT = 24, 40
STACKS = {
    "one": {"a": (4, 8)},
    "two of one scale": {"a": (4, 8), "b": (2, 4)},
    "two of different scales": {"a": (4, 8), "b": (2, 7)},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, OUT), nn.GELU(), nn.Linear(OUT, IN, bias=False)).requires_grad_(False)


def pair(stack: dict[str, tuple[int, int]], dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Ours and PEFT's with the same weights, all adapters of the stack active."""
    ours = network().to(dtype)
    theirs = copy.deepcopy(ours)
    for name, (rank, alpha) in stack.items():
        inject(ours, name, LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0", "2"]))
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0", "2"]), theirs, adapter_name=name
        )
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    state = {key: torch.randn(value.shape) if ".lora_" in key else value for key, value in theirs.state_dict().items()}
    for made in (ours, theirs):
        made.load_state_dict(state)
        for path, parameter in made.named_parameters():
            parameter.requires_grad_(".lora_" in path)
    select_together(ours).names = tuple(stack)
    for layer in theirs.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter(list(stack))
    return ours, theirs


def output_and_gradients(made: nn.Module, x: torch.Tensor, *, autocast: bool) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = made(x)
    y.float().square().mean().backward()
    assert x.grad is not None
    parameters = dict(made.named_parameters())
    return [y, x.grad, *(parameters[path].grad for path in sorted(parameters) if ".lora_" in path)]


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_the_layer_is_pefts(stack):
    """In float64, where rounding hides nothing."""
    x = torch.randn(2, 5, IN, dtype=torch.float64)
    ours, theirs = (made.double() for made in pair(stack, torch.float64))
    found = output_and_gradients(ours, x, autocast=False)
    expected = output_and_gradients(theirs, x, autocast=False)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_under_autocast_it_is_pefts_to_the_rounding_of_bfloat16(stack):
    x = torch.randn(3, 7, IN)
    ours, theirs = pair(stack, torch.bfloat16)
    found = output_and_gradients(ours, x, autocast=True)
    expected = output_and_gradients(theirs, x, autocast=True)
    exact, _ = pair(stack, torch.float32)
    exact.load_state_dict({key: value.float() for key, value in ours.state_dict().items()})
    reference = output_and_gradients(exact, x, autocast=False)
    for one, other, true in zip(found, expected, reference, strict=True):
        assert one.dtype == other.dtype
        off, theirs_off = ((value.float() - true).norm() / true.norm() for value in (one, other))
        assert off < max(1.2 * theirs_off, 1e-2)


def test_a_layer_computes_in_autocasts_dtype_or_its_own():
    made, _ = pair(STACKS["one"], torch.bfloat16)
    assert made(torch.randn(2, IN).bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert made(torch.randn(2, IN)).dtype == torch.bfloat16


def test_nothing_is_active_before_it_is_selected_and_what_a_layer_lacks_is_passed_over():
    bare = network()
    made = copy.deepcopy(bare)
    inject(made, "a", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    inject(made, "b", LoraConfig(r=2, target_modules=["2"], init_lora_weights=False))
    x = torch.randn(3, IN)
    assert torch.equal(made(x), bare(x))
    selection = select_together(made)
    outputs = []
    for names in ((), ("a",), ("b",), ("a", "b")):
        selection.names = names
        outputs.append(made(x))
    assert torch.equal(outputs[0], bare(x))
    assert all(not torch.equal(one, other) for i, one in enumerate(outputs) for other in outputs[:i])


def test_a_switch_touches_no_layer_and_no_parameter(tiny_folder, monkeypatch):
    module = tiny_module(tiny_folder)
    touched = []
    monkeypatch.setattr(StackedLinear, "set_adapter", lambda *_: touched.append("layer"))
    monkeypatch.setattr(nn.Parameter, "requires_grad_", lambda *_: touched.append("parameter"))
    with module.roles.role(GENERATOR), module.roles.role(FAKE_SCORE):
        pass
    assert not touched
