"""Writing the result of a run: the EMA generator's adapter, in the published format and for diffusers, and the fake score's; or,
where whole transformers train, both of these."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
import torch

from rtdmd_lightning.callbacks.protocols import HasRoles
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.cold_start import FAKE_SCORE_FILE, WHOLE_FAKE_SCORE
from rtdmd_lightning.roles import Adapter, stack
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.lora_roles import LoraRoles
from rtdmd_lightning.roles.reading import from_state_dict
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, Roles
from rtdmd_lightning.roles.writing import write_diffusers, write_published, write_whole
from rtdmd_lightning.utils.errors import require
from rtdmd_lightning.utils.files import folder_appearing_at
from rtdmd_lightning.utils.run_folder import run_folder

State = dict[str, torch.Tensor]


class ExportGenerator(L.Callback):
    """At the end of training, and every `every_n_updates` generator updates, write into `RUN_DIR/NAME/`:

    * `generator_ema.pt`: a plain state dict of the trained adapter, keys as METHOD section 5 says;
    * `fake_score.pt`: the fake score's in the same format, which stage 2 goes on from, where the run has one;
    * `pytorch_lora_weights.safetensors`: all that the generator adds to its base, for `pipe.load_lora_weights(folder)` of
      diffusers. In stage 2 that is the cold start and the trained adapter as one of both ranks.

    Of whole transformers (`model.trainable=full`) it holds `transformer/`, for `from_pretrained(folder, subfolder="transformer")`
    of diffusers, with a `model_index.json` that lists nothing else, and `fake_score/`, which is the same of the fake score.

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
        trained = {role: roles.own_state_dict(role) for role in (EMA, FAKE_SCORE) if role in roles.own}
        if trainer.is_global_zero:
            with folder_appearing_at(run_folder(trainer) / self.name) as folder:
                if isinstance(roles, LoraRoles):
                    write_adapters(trained, folder, pl_module.lora, roles)
                else:
                    write_transformers(trained, folder, roles)
        self._written_at = trainer.global_step


def write_adapters(trained: Mapping[str, State], folder: Path, settings: LoraSettings, roles: LoraRoles) -> None:
    """Of the average, on those that it was trained on (the cold start's files may have changed meanwhile), and the fake score."""
    beneath = [roles.frozen[name] for name in roles.stacks[EMA] if name != EMA]
    write_adapter(trained[EMA], folder, roles.backbone, settings, beneath)
    if FAKE_SCORE in trained:
        write_published(from_state_dict(trained[FAKE_SCORE], settings.scale, FAKE_SCORE), folder, FAKE_SCORE_FILE)


def write_transformers(trained: Mapping[str, State], folder: Path, roles: Roles) -> None:
    """Of the average, and of the fake score in a folder of its own."""
    places = {EMA: folder, FAKE_SCORE: folder / WHOLE_FAKE_SCORE}
    for role, state in trained.items():
        write_whole(state, roles.base_of(role).config, places[role], roles.backbone)


def write_adapter(
    state: State,
    folder: Path,
    backbone: Backbone,
    settings: LoraSettings,
    beneath: Sequence[Adapter] = (),
) -> None:
    """Write the generator's two files; a reader never meets half of one. `beneath` are the frozen adapters under it."""
    adapter = from_state_dict(state, settings.scale, source=EMA)
    write_published(adapter, folder)
    write_diffusers(stack([*beneath, adapter]), folder, backbone.pipeline_class)
