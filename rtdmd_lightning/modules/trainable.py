"""What trains (`model.trainable`): adapters on one frozen base, or whole transformers beside it."""

from typing import TYPE_CHECKING, Literal

import torch

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.roles import at_settings, read
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.lora_roles import LoraRoles
from rtdmd_lightning.roles.roles import Roles
from rtdmd_lightning.roles.sharding import Sharding
from rtdmd_lightning.roles.whole import WholeRoles
from rtdmd_lightning.utils.errors import require

if TYPE_CHECKING:
    from rtdmd_lightning.modules.training import FewStepModule

Trainable = Literal["lora", "full"]


def check_whole(backbone: Backbone, initial_adapter: str | None) -> None:
    """Raises UserError for options that do not go with `model.trainable=full`."""
    require(
        backbone.quantization == "none",
        f"model.trainable=full trains the weights that model.backbone.quantization={backbone.quantization} would keep in few "
        "bits: leave the quantization out, or train adapters (model.trainable=lora)",
    )
    require(
        backbone.dtype == torch.float32,
        f"model.trainable=full needs model.backbone.dtype=float32, not {str(backbone.dtype).removeprefix('torch.')}, which "
        "rounds an update of its learning rate away; trainer.precision=bf16-mixed computes in bfloat16 all the same",
    )
    require(
        initial_adapter is None,
        f"model.initial_adapter {initial_adapter} is an adapter, and model.trainable=full has none: it starts from the base, or "
        "in stage 2 from model.cold_start",
    )


def build_roles(module: "FewStepModule", device: torch.device, sharding: Sharding | None) -> Roles:
    """Of a module, its weights read. Raises UserError for files of adapters that do not fit, before the base is read."""
    backbone, stacks, trained = module.backbone, module.stacks(), tuple(module.optimize.settings)
    if module.trainable == "full":
        return WholeRoles(backbone, stacks, trained, module.frozen_adapters(), device, sharding)
    frozen = {name: module.read_adapter(path) for name, path in module.frozen_adapters().items()}
    initial = read(module.initial_adapter) if module.initial_adapter else None
    if initial is not None:
        initial = at_settings(initial, module.lora)  # a wrong file is told in a second
    return LoraRoles(backbone, stacks, trained, module.lora, frozen, initial, device, sharding)


def shape_of(trainable: Trainable, lora: LoraSettings) -> dict[str, str]:
    """What of it a checkpoint must share with a run that goes on from it."""
    if trainable == "full":
        return {"trained part": "whole transformers"}
    return {"LoRA": f"rank {lora.rank}, alpha {lora.alpha}"}
