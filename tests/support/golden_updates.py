"""Whole training updates as the authors' implementation computed them (`tests/data/golden/updates`, and its README).

The environment variable RTDMD_GOLDEN_UPDATES names another folder of the same format.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.models import SD3Backbone
from rtdmd_lightning.modules.optimization import OptimizerSettings
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.roles.lora import adapter_state_dict, load_adapter_state_dict

FOLDER = Path(os.environ.get("RTDMD_GOLDEN_UPDATES") or Path(__file__).parents[1] / "data/golden/updates")
# Relative to the largest element, as the folder's README has them.
TOLERANCE, OF_PARAMETERS, OF_CHANGES = 1e-5, 2e-5, 1e-3


class Golden:
    """One of the two stages: its JSON and its tensors."""

    def __init__(self, stage: str) -> None:
        self.told = json.loads((FOLDER / f"{stage}.json").read_text())
        self.tensors = load_file(FOLDER / f"{stage}.safetensors")
        self.constants = self.told["constants"]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def backbone(self) -> SD3Backbone:
        return SD3Backbone(
            str(FOLDER / "model"),
            resolution=self.constants["resolution"],
            max_sequence_length=self.constants["t5_tokens"],
            dtype=self.constants["dtype"],
        )

    def optimizer(self, role: str) -> OptimizerSettings:
        told = self.constants[f"{role}_optimizer"]
        assert not told.get("warmup_steps")
        return OptimizerSettings(
            learning_rate=told["lr"],
            betas=(told["beta1"], told["beta2"]),
            weight_decay=told["weight_decay"],
            eps=told["eps"],
            max_grad_norm=told["max_grad_norm"],
        )

    def adapter(self, key: str, layout: list) -> dict[str, Tensor]:
        """A vector of adapter weights by their names."""
        parts = self[key].split([torch.Size(shape).numel() for _, shape in layout])
        return {name: part.view(shape) for (name, shape), part in zip(layout, parts, strict=True)}


LAYOUT = json.loads((FOLDER / "cold_start.json").read_text())["adapter_layout"]


def vector(state: Mapping[str, Tensor]) -> Tensor:
    """Adapter weights, or their gradients, in the order of the files."""
    return torch.cat([state[name].flatten() for name, _ in LAYOUT])


def set_adapter(module: FewStepModule, role: str, state: Mapping[str, Tensor]) -> None:
    load_adapter_state_dict(module.roles.base_of(role), role, state, source="the golden file")


def adapter_of(module: FewStepModule, role: str) -> Tensor:
    return vector(adapter_state_dict(module.roles.base_of(role), role))


@dataclass(frozen=True)
class Recorded:
    """Stands in for `SampleRandom`: what it is asked for is looked up by (use, purpose, sample index)."""

    find: Callable[[str, str, int], Tensor]
    indices: list[int]
    use: str = ""

    def __getitem__(self, part: slice) -> "Recorded":
        return replace(self, indices=self.indices[part])

    def for_use(self, use: str) -> "Recorded":
        return replace(self, use=use)

    def ahead(self, normals, uniforms=()) -> "Recorded":
        return self

    def uniform(self, purpose: str) -> Tensor:
        return torch.stack([self.find(self.use, purpose, index) for index in self.indices])

    def normal(self, purpose: str, shape) -> Tensor:
        drawn = self.uniform(purpose)
        assert drawn.shape == (len(self.indices), *shape)
        return drawn


RENOISE_DRAWS = {
    "level": "uniform",
    "noise": "renoise",
    "delta 0": "delta",
    "move 0 branch 0": "branch_1",
    "move 0 branch 1": "branch_2",
    "return": "return",
}


def recorded_draw(golden: Golden, prefix: str, draw: str, row: int) -> Tensor:
    """A draw as the module asks for it: moves come from uniform numbers here, as whole numbers there."""
    name = f"{prefix}/{draw}"
    if draw.startswith("step_") and name not in golden.tensors:  # of a step that reaches level 0
        return torch.zeros_like(golden[f"{prefix}/start"][row])
    value = golden[name][row]
    return (value - 0.5) / golden.constants["consistency_max_delta"] if draw == "delta" else value


class Spy:
    """Replaces functions where they are called from, and keeps what they were given and what they gave."""

    def __init__(self, monkeypatch: Any) -> None:
        self.monkeypatch = monkeypatch
        self.calls: dict[str, list[tuple[tuple, dict, Any]]] = {}

    def on(self, owner: Any, *names: str) -> None:
        for name in names:
            self._replace(owner, name)

    def _replace(self, owner: Any, name: str) -> None:
        original, calls = getattr(owner, name), self.calls.setdefault(name, [])

        def spied(*args, **kwargs):
            result = original(*args, **kwargs)
            calls.append((args, kwargs, result))
            return result

        self.monkeypatch.setattr(owner, name, spied)

    def results(self, name: str) -> list:
        return [result for _, _, result in self.calls[name]]

    def first(self, name: str) -> list:
        """The first argument of every call."""
        return [args[0] for args, _, _ in self.calls[name]]


class Steps:
    """The gradients of a role's every optimizer step, before and after clipping, its norms, and the weights after it."""

    def __init__(self, module: FewStepModule, monkeypatch: Any) -> None:
        self.module = module
        self.gradients: dict[str, list[Tensor]] = {}
        self.norms: dict[str, list[float]] = {}
        self.after: dict[str, list[Tensor]] = {}
        self.clipped: list[Tensor] = []
        self._original = module.optimize.step
        monkeypatch.setattr(module.optimize, "step", self._step)

    def _step(self, role: str) -> Tensor:
        self.gradients.setdefault(role, []).append(self._gradient(role))
        hook = register_optimizer_step_pre_hook(lambda *_: self.clipped.append(self._gradient(role)))
        norm = self._original(role)
        hook.remove()
        self.norms.setdefault(role, []).append(norm.item())
        self.after.setdefault(role, []).append(adapter_of(self.module, role))
        return norm

    def _gradient(self, role: str) -> Tensor:
        named = {
            path.replace(f".{role}.", ".default."): parameter.grad
            for path, parameter in self.module.roles.base_of(role).named_parameters()
            if f".{role}." in path
        }
        return vector(named).detach().clone()


def train_on(module: FewStepModule, batch: PromptBatch) -> None:
    """One training step on one batch."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", devices=1, max_steps=1, **quiet)
    trainer.fit(module, DataLoader([batch], batch_size=None, collate_fn=lambda item: item))


def close(actual: Any, expected: Any, tolerance: float = TOLERANCE, least: float = 0.0) -> None:
    """Equal, relative to the largest element (or to `least`)."""
    actual, expected = (torch.as_tensor(value).detach().double() for value in (actual, expected))
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    difference = (actual - expected).abs().max().item()
    bound = tolerance * max(expected.abs().max().item(), least)
    assert difference <= bound, f"differs by {difference:.3e}, allowed are {bound:.3e}"
