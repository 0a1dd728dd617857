"""A callback in whose run attention rounds otherwise in passes with gradient, as other kernels for them do."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightning import Callback


class OtherAttention(Callback):
    """From the start of training to its end, however it ends.

    Args:
        rank: the process that has such kernels; the others' are the same with gradient and without.
    """

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self._own: Callable = F.scaled_dot_product_attention

    def on_train_start(self, trainer, pl_module) -> None:
        if trainer.global_rank == self.rank:
            F.scaled_dot_product_attention = self._other

    def on_train_end(self, trainer, pl_module) -> None:
        F.scaled_dot_product_attention = self._own

    def on_exception(self, trainer, pl_module, exception) -> None:
        F.scaled_dot_product_attention = self._own

    def _other(self, *args, **kwargs):
        return self._own(*args, **kwargs) * (1 + 1e-3 * torch.is_grad_enabled())
