"""The roles of a run as stacks of LoRA adapters on one frozen base, or on two."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.models.broadcast import WeightBroadcast, reads_weights
from rtdmd_lightning.models.placement import BASE
from rtdmd_lightning.models.quantization import check_device, quantize
from rtdmd_lightning.roles import lora
from rtdmd_lightning.roles.adapter import Adapter
from rtdmd_lightning.roles.apply import inject
from rtdmd_lightning.roles.lora import AdapterRoles, LoraSettings
from rtdmd_lightning.roles.roles import CPU, FAKE_SCORE, GENERATOR, TEACHER, Roles, Stacks
from rtdmd_lightning.roles.sharding import Sharding, shard


class LoraRoles(Roles):
    """Who runs on which base with which adapters. A stack's adapters are active together.

    An adapter has the name of the role that it was made for. Those in `frozen` are given; the others are new. New ones that
    are not trained (the average; in some algorithms an old policy) follow the generator and start as its copy.

    Args:
        backbone: its weights are read here.
        stacks: the run's roles. What no stack names is not built.
        trained: the adapters that an optimizer trains.
        settings: shape of the new adapters.
        frozen: adapters that lie frozen under the new ones, by name.
        initial: what the generator starts from instead of the base; of the settings' rank and alpha.
        device: where the bases' weights go, in a group of processes of which one reads them (`models/broadcast.py`), and where
            they are quantised.
        sharding: how FSDP2 shards the bases, block by block; without it they stay whole.
    """

    def __init__(
        self,
        backbone: Backbone,
        stacks: Stacks,
        trained: Sequence[str],
        settings: LoraSettings,
        frozen: Mapping[str, Adapter],
        initial: Adapter | None = None,
        device: torch.device = CPU,
        sharding: Sharding | None = None,
    ) -> None:
        super().__init__(backbone, stacks, trained)
        self.frozen = dict(frozen)
        check_device(backbone.quantization, device)
        backbone.reads_weights = reads_weights()
        self.transformer = backbone.load()
        self.generator_base = backbone.load_generator_base()
        bring = WeightBroadcast(self.bases, device)
        self._home = {name: self.base_of(role) for role, stack in stacks.items() for name in stack}
        for name, adapter in frozen.items():
            inject(self._home[name], name, adapter)
        self.own = tuple(name for name in self._home if name not in frozen)
        for name in self.own:
            lora.add_adapter(self._home[name], name, settings, backbone.lora_targets)
        if initial is not None:
            self._fill(GENERATOR, initial.state_dict(), source=initial.source)
        for name in self.own:
            if name not in self.trained:
                self._fill(name, self.own_state_dict(GENERATOR), source=GENERATOR)
        for base in self.bases:
            if sharding is None:
                if backbone.quantization != "none":
                    offloaded = BASE in backbone.offloaded
                    quantize(base, backbone.quantization, backbone.block_classes, device, bring, offloaded)
                bring(base)
            else:
                assert backbone.quantization == "none", "what is quantised is not sharded"
                shard(base, sharding, backbone.block_classes, bring)
        self._of_adapter = {name: list(lora.adapter_parameters(self._home[name], name).values()) for name in self.own}
        self._switch = AdapterRoles(nn.ModuleList(self.bases), stacks, trainable=self.trained)

    @property
    def bases(self) -> list[nn.Module]:
        return [self.transformer] if self.generator_base is None else [self.transformer, self.generator_base]

    def base_of(self, role: str) -> nn.Module:
        """Teacher and fake score share a base; the generator's roles may have one of their own (METHOD section 4, FLUX.2)."""
        if self.generator_base is None or role in (FAKE_SCORE, TEACHER):
            return self.transformer
        return self.generator_base

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        return self._of_adapter[name]

    def own_state_dict(self, name: str) -> dict[str, Tensor]:
        """In METHOD section 5's format."""
        return lora.adapter_state_dict(self._home[name], name)

    def role(self, name: str) -> AbstractContextManager[None]:
        return self._switch.role(name)

    def _fill(self, adapter: str, state: Mapping[str, Tensor], source: str) -> None:
        lora.load_adapter_state_dict(self._home[adapter], adapter, state, source)
