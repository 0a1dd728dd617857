"""A result from Python: `load_student(base, adapters).draw(prompts)`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rtdmd_lightning.models.families import open_backbone
from rtdmd_lightning.roles.inference import InferenceModel, even_steps
from rtdmd_lightning.utils.errors import require
from rtdmd_lightning.utils.processes import process_device


class Student:
    """Draws pictures with a loaded model, see `load_student`."""

    def __init__(self, model: InferenceModel) -> None:
        self.model = model

    def draw(
        self,
        prompts: Sequence[str],
        *,
        steps: int | Sequence[int] = 4,
        eta: float = 0.9,
        seed: int = 0,
        batch_size: int = 8,
    ) -> Tensor:
        """A picture of each prompt, `[B, 3, H, W]` in [0, 1] on the model's device.

        Args:
            prompts: picture i's noise depends on (seed, i) alone, as with `rtdmd sample`.
            steps: how many evenly spaced ones (4 are METHOD section 1's 1000, 750, 500, 250), or which raw timesteps.
            eta: stochasticity of the CPS steps in [0, 1]; 0 is the Euler ODE sampler.
            seed: of the noise.
            batch_size: pictures drawn at once.

        Raises UserError for steps or an eta that the sampler does not have, and where there is nothing to draw.
        """
        require(not isinstance(prompts, str), "draw wants a list of prompts, such as ['a cat'], not one text")
        require(len(prompts) > 0 and batch_size > 0, "draw wants at least one prompt, and a batch_size of at least 1")
        self.model.use_sampler(even_steps(steps) if isinstance(steps, int) else steps, eta)
        batches = (range(first, len(prompts))[:batch_size] for first in range(0, len(prompts), batch_size))
        return torch.cat([self.model.generate([prompts[i] for i in batch], batch, seed=seed) for batch in batches])


def load_student(
    base: str,
    adapters: Sequence[str] = (),
    *,
    resolution: int | None = None,
    guidance_scale: float | None = None,
    device: str | None = None,
    **backbone: Any,
) -> Student:
    """Read a base and its adapters, ready to draw.

    Args:
        base: the base model, a diffusers folder or hub id.
        adapters: files or folders in any format that `rtdmd_lightning.roles.read` reads, applied in this order: the cold start's,
            then stage 2's. Without them it is the base itself.
        resolution: in pixels; by default that of the base's own pipeline.
        guidance_scale: of CFG, or the model's guidance input. By default 1 with adapters, as students are trained, and without
            them the base's own: 3.5 for FLUX.1-dev, 1 for other models.
        device: by default an accelerator where there is one.
        backbone: further arguments of the base's backbone class, e.g. `dtype="float32"`.

    Raises UserError where a file is missing or does not fit the base.
    """
    require(
        not isinstance(adapters, str), "load_student wants a list of adapters, such as ['runs/x/rtdmd'], not one text"
    )
    model = InferenceModel(open_backbone(base, resolution, backbone), adapters, guidance_scale=guidance_scale)
    model.load(process_device(device))
    return Student(model)
