"""A run's own module on the fake device: its networks weightless and of few blocks, everything else as it is."""

import copy
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.modules import ACDMDModule, RTDMDModule
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.planning.blocks import Kind
from rtdmd_lightning.planning.cold_start import place_cold_start
from rtdmd_lightning.planning.fake_device import FAKE_DEVICE, faked
from rtdmd_lightning.planning.parts import PipelineConfigs, pipeline_configs
from rtdmd_lightning.planning.rewards import check_known, stand_ins
from rtdmd_lightning.planning.weightless import Weightless, block_kinds, weightless
from rtdmd_lightning.roles import Adapter
from rtdmd_lightning.roles.reading import from_state_dict
from rtdmd_lightning.utils.errors import UserError

Planned = TypeVar("Planned", bound=ACDMDModule | RTDMDModule)


def known_shapes(module: FewStepModule) -> tuple[PipelineConfigs, Counter[Kind]]:
    """The configs of its pipeline's parts, and how many blocks of each kind its networks have.

    Raises UserError for a module, backbone or reward of which too little is known.
    """
    if not isinstance(module, ACDMDModule | RTDMDModule) or not isinstance(module.backbone, PipelineBackbone):
        raise UserError(
            f"{type(module).__name__} with {type(module.backbone).__name__} cannot be planned: the phases of ACDMDModule and "
            "RTDMDModule are known, with backbones that are a PipelineBackbone"
        )
    configs = pipeline_configs(module.backbone)
    if isinstance(module, RTDMDModule):
        for reward in module.rewards.rewards.values():
            check_known(reward)
    return configs, block_kinds(module.backbone, configs)


@contextmanager
def fake_module(described: Planned, configs: PipelineConfigs, blocks: Counter[Kind]) -> Iterator[Planned]:
    """A copy of a module that is not configured yet, configured, as if its transformers had these blocks only.

    In the body tensors are fake; the embedding of the prompt "" is known. A cold start is made up: the user's own may not exist.
    """
    module = copy.deepcopy(described)
    assert isinstance(module.backbone, PipelineBackbone)
    source = Weightless(type(module.backbone), configs, blocks)
    backbone = weightless(module.backbone, source)
    module.backbone, module.initial_adapter = backbone, None
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(module, RTDMDModule):
            place_cold_start(module, source, Path(folder), partial(torch.empty, device="meta"))
            module.read_adapter = partial(read_without_numbers, module.lora.scale)  # type: ignore[method-assign]
        with faked():
            with FAKE_DEVICE:
                if isinstance(module, RTDMDModule):
                    module.rewards = stand_ins(module.rewards)
                module.configure_model()
            module.to(FAKE_DEVICE)
            backbone.to(FAKE_DEVICE)
            module.embed.remember("", backbone.blank_conditioning(1))
            yield module


def read_without_numbers(scale: float, path: str) -> Adapter:
    """A published file of tensors that have no numbers, which `roles.read` would look at."""
    return from_state_dict(torch.load(path, weights_only=True), scale, path)
