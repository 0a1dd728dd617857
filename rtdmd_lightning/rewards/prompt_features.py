"""A frozen text tower's embeddings of prompts: training asks for the same ones again and again."""

from collections.abc import Callable

import torch
from torch import Tensor

from rtdmd_lightning.utils.prompt_memory import PromptMemory

REMEMBERED_PROMPTS = 16_384


class PromptFeatures:
    """Each prompt is encoded once while it is among the last that were asked for; see `PromptMemory`.

    Rows are kept on the CPU: the scoring thread and the training thread, each on a stream of its own, both ask for them.

    Args:
        encode: of a network; B prompts to `[B, D]`. It is called without gradient.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor]) -> None:
        self._encode = encode
        self.memory: PromptMemory[Tensor] = PromptMemory(REMEMBERED_PROMPTS)

    def __call__(self, prompts: list[str], like: Tensor) -> Tensor:
        """B prompts to `[B, D]`, in the dtype and on the device of another tensor."""
        rows = self.memory.recall(prompts, self._rows)
        # A copy: rows made under inference_mode, where Lightning validates, could not be saved for a backward pass.
        return torch.stack(rows).to(like)

    def _rows(self, prompts: list[str]) -> list[Tensor]:
        with torch.no_grad():
            return [row.clone() for row in self._encode(prompts).cpu()]  # no row keeps its batch's memory
