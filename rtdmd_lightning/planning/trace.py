"""One rollout, one fake-score step and one generator step of a run, executed on fake tensors and weighed.

The module, its losses and its precision are the run's own; only the networks are weightless, and of few blocks (see `blocks`).
Fake tensors are those of an accelerator, see `fake_device`.
"""

import copy
from collections import Counter
from functools import partial

from lightning import Trainer
from lightning.pytorch.plugins import MixedPrecision
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from rtdmd_lightning.data.embeddings import MEBIBYTE
from rtdmd_lightning.data.stream import samples_per_pass
from rtdmd_lightning.models.frozen_linear import FrozenLinear
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.modules import ACDMDModule, RTDMDModule
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.planning.blocks import Kind, few, for_all_blocks
from rtdmd_lightning.planning.estimate import Base, Trace
from rtdmd_lightning.planning.fake_device import FAKE_DEVICE
from rtdmd_lightning.planning.fake_module import fake_module, known_shapes
from rtdmd_lightning.planning.parts import PipelineConfigs, parameter_bytes
from rtdmd_lightning.planning.phases import (
    EVALUATION,
    ROLLOUT,
    WITHOUT_GRADIENT,
    cold_start_phases,
    evaluate,
    reinforcement_phases,
)
from rtdmd_lightning.planning.rewards import StandIn
from rtdmd_lightning.planning.tracking import AllocationTracker
from rtdmd_lightning.planning.weightless import text_encoder_bytes
from rtdmd_lightning.roles.roles import GENERATOR

Planned = ACDMDModule | RTDMDModule


def trace(module: FewStepModule, trainer: Trainer, *, full: bool = True, images: int | None = None) -> Trace:
    """Of a module as a command line describes it, not configured yet.

    `full` also runs the steps without gradient checkpointing; `images` are drawn and scored once more, as an evaluation does it.

    Raises UserError for a module, backbone or reward of which too little is known.
    """
    configs, blocks = known_shapes(module)
    assert isinstance(module, ACDMDModule | RTDMDModule)
    traces = [trace_blocks(module, trainer, configs, fewer, full, images) for fewer in few(blocks)]
    return for_all_blocks(traces, blocks)


def trace_blocks(
    module: Planned, trainer: Trainer, configs: PipelineConfigs, blocks: Counter[Kind], full: bool, images: int | None
) -> Trace:
    """As `trace`, but as if transformer and rewards had these blocks only."""
    with fake_module(module, configs, blocks) as fake:
        backbone = fake.backbone
        assert isinstance(backbone, PipelineBackbone)
        peaks = _weigh(fake, backbone, trainer, full, images)
        return _assemble(fake, backbone, text_encoder_bytes(backbone, configs), *peaks)


def _weigh(
    module: Planned, backbone: PipelineBackbone, trainer: Trainer, full: bool, images: int | None
) -> tuple[dict[str, int], dict[str, int]]:
    """By phase the peak beyond what was there before the first: with gradient checkpointing, and without."""
    local = samples_per_pass(module.batch_size, trainer.world_size, module.micro_batch_size)
    tracker = AllocationTracker(FAKE_DEVICE)
    tracker.hold(
        tensor for network in _networks(module, backbone) for tensor in (*network.parameters(), *network.buffers())
    )
    start = tracker.current
    with tracker:
        phases = (
            cold_start_phases(module, local) if isinstance(module, ACDMDModule) else reinforcement_phases(module, local)
        )

        precision = copy.copy(trainer.precision_plugin)
        if isinstance(precision, MixedPrecision):
            precision.device = FAKE_DEVICE.type

        def peak(name: str) -> int:
            tracker.restart()
            with precision.train_step_context():
                phases[name]()
            return tracker.peak - start

        def peaks_of_steps() -> dict[str, int]:
            return {name: peak(name) for name in phases if name not in WITHOUT_GRADIENT}

        rolls_out_images = isinstance(module, RTDMDModule) and images == local
        if images is not None and not rolls_out_images:
            phases[EVALUATION] = partial(evaluate, module, images)
        either_way = {name: peak(name) for name in phases if name in WITHOUT_GRADIENT}
        if rolls_out_images:  # and keeps their states and log-probabilities besides
            either_way[EVALUATION] = either_way[ROLLOUT]
        for base in module.roles.bases:
            base.enable_gradient_checkpointing()  # type: ignore[operator]
        checkpointed = peaks_of_steps()
        for base in module.roles.bases:
            base.disable_gradient_checkpointing()  # type: ignore[operator]
        return either_way | checkpointed, either_way | peaks_of_steps() if full else {}


def _networks(module: Planned, backbone: PipelineBackbone) -> list[nn.Module]:
    rewards = module.rewards.rewards.values() if isinstance(module, RTDMDModule) else ()
    return [
        *module.roles.bases,
        backbone.loaded.vae,
        *(network for reward in rewards for network in reward.networks()),
    ]


def _assemble(
    module: Planned, backbone: PipelineBackbone, text_encoders: int, checkpointed: dict[str, int], full: dict[str, int]
) -> Trace:
    trained = [parameter for role in module.roles.trained for parameter in module.roles.parameters_of(role)]
    adapters = [
        parameter for base in module.roles.bases for path, parameter in base.named_parameters() if ".lora_" in path
    ]
    mixture = module.rewards if isinstance(module, RTDMDModule) else None
    rewards = {} if mixture is None else mixture.rewards
    sizes = {name: reward.bytes() for name, reward in rewards.items() if isinstance(reward, StandIn)}
    return Trace(
        bases=tuple(_base(base, backbone.block_classes) for base in module.roles.bases),
        trained=parameter_bytes(trained),
        adapters=parameter_bytes(adapters),
        gradients=parameter_bytes(module.roles.parameters_of(GENERATOR)),
        vae=parameter_bytes(backbone.loaded.vae.parameters()),
        text_encoders=text_encoders,
        rewards=sizes,
        differentiable={} if mixture is None else {name: sizes[name] for name in mixture.differentiable},
        checkpointed=checkpointed,
        full=full,
        embeddings=backbone.embeddings_on_device * MEBIBYTE,
    )


def _base(transformer: nn.Module, blocks: tuple[type[nn.Module], ...]) -> Base:
    def frozen(module: nn.Module) -> int:
        return parameter_bytes(parameter for path, parameter in module.named_parameters() if ".lora_" not in path)

    found = [module for module in transformer.modules() if isinstance(module, blocks)]
    sizes = [frozen(block) for block in found]
    layers = [
        layer
        for block in found
        for path, layer in block.named_modules()
        if isinstance(layer, nn.Linear | FrozenLinear)
        and ".lora_" not in path
        and not isinstance(layer, BaseTunerLayer)
    ]
    weights = [layer.in_features * layer.out_features for layer in layers]
    return Base(
        total=frozen(transformer),
        largest_block=max(sizes),
        outside=frozen(transformer) - sum(sizes),
        weights=sum(weights),
        linear=sum(map(_bytes_of_weight, layers)),
        widest=max(weights),
    )


def _bytes_of_weight(layer: nn.Linear | FrozenLinear) -> int:
    return parameter_bytes([layer.packed, layer.scale] if isinstance(layer, FrozenLinear) else [layer.weight])
