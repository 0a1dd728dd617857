"""Writing the result of a run: the EMA generator's adapter, in the published format and for diffusers."""

import os
from pathlib import Path

import lightning as L
import torch

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.models.lora import LoraSettings, adapter_state_dict
from rtdmd_lightning.modules.core import EMA, DistillationModule


class ExportGenerator(L.Callback):
    """At the end of training, and every `every_n_updates` generator updates, write into `LOG_DIR/NAME/`:

    * `generator_ema.pt`: a plain state dict of the adapter, keys as METHOD section 5 says;
    * `pytorch_lora_weights.safetensors`: the same for `pipe.load_lora_weights(folder)` of diffusers.
    """

    def __init__(self, name: str, every_n_updates: int | None = None) -> None:
        self.name = name
        self.every_n_updates = every_n_updates

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if self.every_n_updates and trainer.global_step % self.every_n_updates == 0:
            self.write(trainer, pl_module)

    def on_train_end(self, trainer, pl_module) -> None:
        self.write(trainer, pl_module)

    def write(self, trainer: L.Trainer, pl_module: DistillationModule) -> None:
        state = adapter_state_dict(pl_module.transformer, EMA)  # on every rank: a sharded adapter is gathered by all
        log_dir = trainer.log_dir  # a broadcast: every rank must ask
        if trainer.is_global_zero and log_dir is not None:
            folder = Path(log_dir) / self.name
            write_adapter(state, folder, pl_module.backbone, pl_module.lora)


def write_adapter(state: dict[str, torch.Tensor], folder: Path, backbone: Backbone, settings: LoraSettings) -> None:
    """Write both files, each under another name first, so that a reader never meets half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial.pt"
    torch.save(state, partial)
    os.replace(partial, folder / "generator_ema.pt")
    # Rank and alpha travel in the file's metadata; without them diffusers would assume alpha = rank.
    metadata = {"r": settings.rank, "lora_alpha": settings.alpha, "target_modules": backbone.lora_targets}
    backbone.pipeline_class.save_lora_weights(
        folder,
        transformer_lora_layers={key.replace(".default.", "."): tensor for key, tensor in state.items()},
        transformer_lora_adapter_metadata=metadata,
        weight_name="partial.safetensors",
    )
    os.replace(folder / "partial.safetensors", folder / "pytorch_lora_weights.safetensors")
