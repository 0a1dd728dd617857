"""Roles on one base: generator, fake score, teacher and EMA are LoRA adapters of a single frozen transformer.

A role is a stack of adapter names; the teacher is the empty stack. What trains is decided once: a switch of roles touches no
`requires_grad`, which optimizers and DDP must never see change. Gradient checkpointing runs the forward pass again during the
backward pass, with whatever adapters are active *then*: a loss must be back-propagated inside the `role(...)` block that made it.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from peft import LoraConfig
from torch import Tensor, nn

from rtdmd_lightning.models.base import DTYPES
from rtdmd_lightning.roles.stacked import inject, select_together
from rtdmd_lightning.utils.errors import UserError, require


@dataclass(frozen=True)
class LoraSettings:
    """The trained adapters: `alpha/rank · B·A` is added to a layer's weight; A starts gaussian, B at zero (METHOD section 4).

    Args:
        rank: rows of A.
        alpha: the scale is alpha / rank.
        seed: of the gaussian A.
        init_std: standard deviation of A; by default 1 / rank (stage 1). The paper's stage 2 starts from 1. With B at zero the
            weights first move in proportion to A, so the learning rate belongs to it.
        dtype: of the trained weights and of their optimizer's state.
        targets: suffixes of the module paths that are adapted; without them the family's own, METHOD's.
    """

    rank: int = 32
    alpha: int = 64
    seed: int = 0
    init_std: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"model.lora.rank must be at least 1, not {self.rank}")
        require(self.alpha >= 1, f"model.lora.alpha must be at least 1, not {self.alpha}")
        require(
            self.init_std is None or 0 < self.init_std < math.inf,
            f"model.lora.init_std must be above 0, not {self.init_std}: with A and B at zero an adapter never learns",
        )
        require(self.targets != [], "model.lora.targets must name a layer; leave it out for the family's own")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def add_adapter(transformer: nn.Module, name: str, settings: LoraSettings, family_targets: list[str]) -> None:
    """Inject an adapter; its initial weights depend on the settings' seed and its name only.

    Raises UserError where no layer of the transformer matches the family's targets, or one of the settings' matches none.
    """
    targets = family_targets if settings.targets is None else settings.targets
    paths = [path for path, _ in transformer.named_modules()]
    matched = [target for target in targets if any(path.endswith(f".{target}") for path in paths)]
    if not matched or (settings.targets is not None and matched != targets):
        unmatched = [target for target in targets if target not in matched]
        raise UserError(f"no layer of {type(transformer).__name__} matches the LoRA targets {', '.join(unmatched)}")
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, init_lora_weights="gaussian", target_modules=list(targets)
    )
    # On the CPU whatever device Lightning builds on (it differs by strategy): each has random numbers of its own. PEFT moves
    # the adapter to its layer.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(settings.seed + sum(name.encode()))
        inject(transformer, name, config)
    dtype = DTYPES[settings.dtype]
    for path, parameter in adapter_parameters(transformer, name).items():
        initial = parameter.data.float()
        if settings.init_std is not None and ".lora_A." in path:
            initial *= settings.init_std * settings.rank  # PEFT's gaussian has a standard deviation of 1 / rank
        parameter.data = initial.to(dtype)


def adapter_parameters(transformer: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The adapter's parameters by their path in the transformer."""
    return {path: parameter for path, parameter in transformer.named_parameters() if f".{name}." in path}


def adapter_state_dict(transformer: nn.Module, name: str) -> dict[str, Tensor]:
    """The adapter in METHOD section 5's format: `<module path>.lora_A.default.weight` and `.lora_B.default.weight`."""
    parameters = adapter_parameters(transformer, name)
    return {path.replace(f".{name}.", ".default."): full_tensor(parameter) for path, parameter in parameters.items()}


@torch.no_grad()
def load_adapter_state_dict(transformer: nn.Module, name: str, state: Mapping[str, Tensor], source: str) -> None:
    """Fill an adapter from METHOD section 5's format. `source` names the file in errors.

    Raises UserError where keys are missing or unknown (a file that matches nothing is never a silent no-op), or where the
    rank differs.
    """
    parameters = {
        path.replace(f".{name}.", ".default."): parameter
        for path, parameter in adapter_parameters(transformer, name).items()
    }
    matching = parameters.keys() & state.keys()
    if not matching:
        raise UserError(f"{source} has no key that matches this model (it wants e.g. {next(iter(parameters))!r})")
    if unmatched := parameters.keys() ^ state.keys():
        raise UserError(f"{source} does not fit this model: {len(unmatched)} keys differ, e.g. {min(unmatched)!r}")
    for path, parameter in parameters.items():
        if parameter.shape != state[path].shape:
            raise UserError(
                f"{source}: {path} has shape {tuple(state[path].shape)}, this model wants {tuple(parameter.shape)}; "
                "set model.lora.rank to the file's rank"
            )
        parameter.copy_(state[path])


def full_tensor(tensor: Tensor) -> Tensor:
    """A detached CPU copy, gathered from all ranks where the tensor is sharded (then all ranks must call this)."""
    whole = tensor.full_tensor() if isinstance(tensor, torch.distributed.tensor.DTensor) else tensor
    return whole.detach().cpu().clone()


class AdapterRoles:
    """Which adapters are active in which role, and which ever train.

    Args:
        transformer: a transformer with all the adapters injected.
        stacks: role name to adapter names, applied together; `()` is the bare base.
        trainable: adapters that receive gradients, at all times and whatever the role.
    """

    def __init__(
        self, transformer: nn.Module, stacks: Mapping[str, tuple[str, ...]], trainable: tuple[str, ...]
    ) -> None:
        self.stacks = dict(stacks)
        self._selection = select_together(transformer)
        for path, parameter in transformer.named_parameters():
            parameter.requires_grad_(any(f".{name}." in path for name in trainable))

    @contextlib.contextmanager
    def role(self, name: str) -> Iterator[None]:
        """Run the body with a role's adapters; the adapters active before are restored, also when the body raises."""
        before = self._selection.names
        self._selection.names = self.stacks[name]
        try:
            yield
        finally:
            self._selection.names = before
