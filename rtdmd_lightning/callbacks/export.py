"""Writing the result of a run: the EMA generator's adapter, in the published format and for diffusers, and the fake score's."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch

from rtdmd_lightning.callbacks.protocols import HasRoles
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.cold_start import FAKE_SCORE_FILE
from rtdmd_lightning.roles import Adapter, stack
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.reading import from_state_dict
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE
from rtdmd_lightning.roles.writing import write_diffusers, write_published
from rtdmd_lightning.utils.errors import require
from rtdmd_lightning.utils.files import folder_appearing_at
from rtdmd_lightning.utils.run_folder import run_folder


class ExportGenerator(L.Callback):
    """At the end of training, and every `every_n_updates` generator updates, write into `RUN_DIR/NAME/`:

    * `generator_ema.pt`: a plain state dict of the trained adapter, keys as METHOD section 5 says;
    * `fake_score.pt`: the fake score's in the same format, which stage 2 goes on from, where the run has one;
    * `pytorch_lora_weights.safetensors`: all that the generator adds to its base, for `pipe.load_lora_weights(folder)` of
      diffusers. In stage 2 that is the cold start and the trained adapter as one of both ranks.

    The folder appears whole, in the place of the previous one.
    """

    def __init__(self, name: str, every_n_updates: int | None = None) -> None:
        if every_n_updates is not None:
            require(every_n_updates >= 1, f"ExportGenerator: every_n_updates must be at least 1, not {every_n_updates}")
        self.name = name
        self.every_n_updates = every_n_updates
        self._written_at = -1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if self.every_n_updates and trainer.global_step % self.every_n_updates == 0:
            self.write(trainer, pl_module)

    def on_train_end(self, trainer, pl_module) -> None:
        self.write(trainer, pl_module)

    def on_fit_end(self, trainer, pl_module) -> None:
        """Lightning calls no `on_train_end` where the resumed checkpoint is the run's end: it may lack the result."""
        if self._written_at != trainer.global_step:
            pl_module.to(trainer.strategy.root_device)
            self.write(trainer, pl_module)

    def write(self, trainer: L.Trainer, pl_module: HasRoles) -> None:
        # On every rank: a sharded adapter is gathered by all.
        roles = pl_module.roles
        trained = {role: roles.adapter_state_dict(role) for role in (EMA, FAKE_SCORE) if role in roles.own}
        if trainer.is_global_zero:
            # Those that were trained on: the cold start's files may have changed meanwhile.
            beneath = [roles.frozen[name] for name in roles.stacks[EMA] if name != EMA]
            settings = pl_module.lora
            with folder_appearing_at(run_folder(trainer) / self.name) as folder:
                write_adapter(trained[EMA], folder, pl_module.backbone, settings, beneath)
                if FAKE_SCORE in trained:
                    fake_score = from_state_dict(trained[FAKE_SCORE], settings.scale, FAKE_SCORE)
                    write_published(fake_score, folder, FAKE_SCORE_FILE)
        self._written_at = trainer.global_step


def write_adapter(
    state: dict[str, torch.Tensor],
    folder: Path,
    backbone: Backbone,
    settings: LoraSettings,
    beneath: Sequence[Adapter] = (),
) -> None:
    """Write the generator's two files; a reader never meets half of one. `beneath` are the frozen adapters under it."""
    adapter = from_state_dict(state, settings.scale, source=EMA)
    write_published(adapter, folder)
    write_diffusers(stack([*beneath, adapter]), folder, backbone.pipeline_class)
