"""One base in memory, drawn with none, some or all of a stack of adapters: the columns of the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.roles.inference import InferenceModel, even_steps
from rtdmd_lightning.utils.errors import UserError

Steps = int | list[int]


@dataclass(frozen=True)
class Teacher:
    """How the base alone is drawn, with as many steps as it needs.

    Args:
        steps: at the levels of the family's own pipeline.
        guidance_scale: of CFG, or the model's guidance input.
    """

    steps: int
    guidance_scale: float


class Columns:
    """Draws a prompt with the base in many steps and in few, and with the first one, two, … of the adapters, from the same noise.

    Args:
        backbone: not loaded yet.
        adapters: files or folders, applied in this order.
        teacher: how the base is drawn in many steps.
        names: of the adapters; by default those of their folders.
    """

    def __init__(
        self, backbone: PipelineBackbone, adapters: Sequence[str], teacher: Teacher, names: Sequence[str] | None = None
    ) -> None:
        self._backbone, self._loaded = backbone, InferenceModel(backbone, adapters)
        self.teacher = teacher
        self.names = [_name(Path(path)) for path in adapters] if names is None else list(names)

    def load(self, device: torch.device) -> None:
        """Read base and adapters. Raises UserError where a file is missing or does not fit."""
        self._loaded.load(device)

    @property
    def side(self) -> int:
        """Of the pictures, in pixels."""
        return self._backbone.resolution

    @property
    def titles(self) -> list[str]:
        """Of the columns; an adapter is on top of those before it."""
        teacher = f"teacher, {self.teacher.steps} steps, guidance {self.teacher.guidance_scale:g}"
        return [teacher, "teacher, few steps", *self.names[:1], *(f"+ {name}" for name in self.names[1:])]

    def draw(self, prompt: str, seed: int, steps: Steps, eta: float) -> Iterator[Tensor]:
        """An image `[3, H, W]` in [0, 1] for each column, as soon as it is drawn; the noise is that of `sample`'s first image.

        Args:
            prompt: what to draw.
            seed: of the noise, which all columns share.
            steps: of all columns but the first: how many, or which raw timesteps (METHOD section 1).
            eta: of the students' steps; the teacher's are Euler's.
        """

        def drawn(count: int, steps: Steps, guidance_scale: float | None, eta: float) -> Tensor:
            model = self._loaded.with_first(count, steps, guidance_scale, eta)
            return model.generate([prompt], [0], seed=seed)[0]

        few, of_students = (steps, even_steps(steps)) if isinstance(steps, int) else (len(steps), steps)
        yield drawn(0, self.teacher.steps, self.teacher.guidance_scale, 0.0)
        yield drawn(0, few, None, 0.0)
        for count in range(1, len(self._loaded.adapters) + 1):
            yield drawn(count, of_students, None, eta)


def parse_steps(text: str) -> Steps:
    """`4` or `[1000, 750, 500, 250]`, as on a command line. Raises UserError for anything else."""
    try:
        steps = yaml.safe_load(text)
    except yaml.YAMLError:
        steps = None
    numbers = steps if isinstance(steps, list) else [steps]
    if not numbers or not all(type(number) is int for number in numbers):
        raise UserError(f"steps must be a number, or a list such as [1000, 750, 500, 250], not {text!r}")
    return steps


def _name(path: Path) -> str:
    """A result's folder, or the folder that a file stands in: the files are all called alike."""
    return path.name if path.suffix == "" else path.resolve().parent.name
