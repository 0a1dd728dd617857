"""The roles of a run as transformers of their own: full fine-tuning of generator and fake score (`model.trainable=full`)."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.models.broadcast import WeightBroadcast, reads_weights
from rtdmd_lightning.roles.roles import CPU, EMA, FAKE_SCORE, Roles, Stacks
from rtdmd_lightning.roles.sharding import Sharding, reshard, shard


class WholeRoles(Roles):
    """Who runs as which transformer.

    A stack is one transformer: `()` the base, `(COLD_START, GENERATOR)` the generator's own, which starts as a copy of the cold
    start's, `(GENERATOR,)` one that starts as a copy of the base. The average starts where the generator does.

    Args:
        backbone: its weights are read here, once for each role.
        stacks: the run's roles. What no stack names is not built.
        trained: the roles that an optimizer trains.
        frozen: what lies beneath new ones, by name: a folder with a `transformer/`.
        device: where the weights go, in a group of processes of which one reads them (`models/broadcast.py`).
        sharding: how FSDP2 shards the transformers, block by block; without it they stay whole.
    """

    def __init__(
        self,
        backbone: Backbone,
        stacks: Stacks,
        trained: Sequence[str],
        frozen: Mapping[str, str],
        device: torch.device = CPU,
        sharding: Sharding | None = None,
    ) -> None:
        super().__init__(backbone, stacks, trained)
        assert backbone.quantization == "none", "what is quantised does not train"
        backbone.reads_weights = reads_weights()
        base = backbone.load()
        self.own = tuple(role for role, stack in stacks.items() if stack and stack[-1] not in frozen)
        self.transformers = nn.ModuleDict()
        for role, stack in stacks.items():
            beneath = [frozen[name] for name in stack if name in frozen]
            transformer = _start(backbone, role, beneath) if stack else base
            transformer.requires_grad_(role in self.trained)
            bring = WeightBroadcast([transformer], device)  # one by one: the reader's RAM holds no more of them
            if sharding is None:
                bring(transformer)
            else:
                shard(transformer, sharding, backbone.block_classes, bring)
            self.transformers[role] = transformer
        self._parameters_of = {role: list(self.transformers[role].parameters()) for role in self.own}

    @property
    def bases(self) -> list[nn.Module]:
        return list(self.transformers.values())

    def base_of(self, role: str) -> nn.Module:
        return self.transformers[role]

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        return self._parameters_of[name]

    def own_state_dict(self, name: str) -> dict[str, Tensor]:
        """Under diffusers' names. The first process has it, the others help to gather what is sharded and get nothing."""
        state = {}
        for key, value in self.transformers[name].state_dict().items():
            gathered = value.full_tensor() if isinstance(value, DTensor) else value
            if reads_weights():
                state[key] = gathered.detach().to("cpu", copy=True)
        return state

    def role(self, name: str) -> AbstractContextManager[None]:
        """There is nothing to switch."""
        return nullcontext()

    def move_average(self, kept: float, name: str = EMA) -> None:
        """FSDP2 gathers weights anew only after a backward pass, which the average has not."""
        super().move_average(kept, name)
        reshard(self.transformers[name])


def _start(backbone: Backbone, role: str, beneath: Sequence[str]) -> nn.Module:
    """Where the family has weights of the generator's own, these are for all roles but the fake score."""
    if beneath:
        return backbone.load_transformer(beneath[-1])
    own = None if role == FAKE_SCORE else backbone.load_generator_base()
    return backbone.load_transformer() if own is None else own
