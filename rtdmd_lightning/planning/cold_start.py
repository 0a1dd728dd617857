"""A cold start that was never trained, for a stage 2 that is planned or timed: the user's own may not exist yet."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rtdmd_lightning.modules import RTDMDModule
from rtdmd_lightning.modules.cold_start import FAKE_SCORE_FILE, FROM_BASE, GENERATOR_FILE
from rtdmd_lightning.planning.weightless import Weightless
from rtdmd_lightning.roles import lora
from rtdmd_lightning.roles.roles import FAKE_SCORE, GENERATOR


def place_cold_start(
    module: RTDMDModule, source: Weightless, folder: Path, make: Callable[[torch.Size], Tensor]
) -> None:
    """Write one of the new adapters' rank, in the run's own format, and point the module to it; `make` makes its tensors.

    A file for the generator, and for the fake score where it is trained and does not start from the base. Where whole
    transformers train, both start as the base does.
    """
    if module.trainable == "full":
        (folder / "transformer").mkdir()  # `source` does not look into it, and every start is as large
        module.cold_start, module.cold_start_fake = str(folder), FROM_BASE
        return
    bare = source.bare_transformer()
    with torch.device("meta"):
        lora.add_adapter(bare, GENERATOR, module.lora, module.backbone.lora_targets)
    state = {
        path.replace(f".{GENERATOR}.", ".default."): make(parameter.shape)
        for path, parameter in lora.adapter_parameters(bare, GENERATOR).items()
    }
    torch.save(state, folder / GENERATOR_FILE)
    module.cold_start = str(folder)
    if module.cold_start_fake != FROM_BASE:
        module.cold_start_fake = None
        if FAKE_SCORE in module.optimize.settings:
            torch.save(state, folder / FAKE_SCORE_FILE)
