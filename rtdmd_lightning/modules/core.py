"""What both stages share: roles on one base, and two optimizers that take turns to train them.

Both stages run manual optimization for that. Only the generator's optimizer is wrapped by Lightning, so
`trainer.global_step`, `max_steps` and checkpoint intervals count generator updates. Gradient clipping is done here, since the
trainer's option refuses manual optimization.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.roles import EMA, FAKE_SCORE, GENERATOR, RolesModule
from rtdmd_lightning.modules.settings import EMASettings, OptimizerSettings
from rtdmd_lightning.roles.sharding import gradient_sync_paused
from rtdmd_lightning.utils.errors import require
from rtdmd_lightning.utils.processes import synchronize


class DistillationModule(RolesModule):
    """A `RolesModule` whose generator and fake score are trained, and the generator averaged.

    Args:
        batch_size: samples of one optimizer step, over all processes.
        generator_optimizer, fake_optimizer: one AdamW each.
        ema: how the generator's average follows it.
        backbone, shared: see `RolesModule` (the command line lists its options here too).
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        generator_optimizer: OptimizerSettings = OptimizerSettings(),
        fake_optimizer: OptimizerSettings = OptimizerSettings(),
        ema: EMASettings = EMASettings(),
        **shared: Any,
    ) -> None:
        super().__init__(backbone, **shared)
        require(batch_size >= 1, f"model.batch_size must be at least 1, not {batch_size}")
        self.automatic_optimization = False
        self.batch_size = batch_size
        self.generator_optimizer = generator_optimizer
        self.fake_optimizer = fake_optimizer
        self.ema = ema

    @property
    @abstractmethod
    def groups_per_step(self) -> int:
        """How many batches of `batch_size` samples one training step consumes."""

    @property
    def images_per_prompt(self) -> int:
        """How many consecutive samples share a prompt."""
        return 1

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.AdamW(
                self.parameters_of(role),
                lr=settings.learning_rate,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                eps=settings.eps,
            )
            for role, settings in ((GENERATOR, self.generator_optimizer), (FAKE_SCORE, self.fake_optimizer))
        ]

    def transfer_batch_to_device(self, batch: PromptBatch, device: torch.device, dataloader_idx: int) -> PromptBatch:
        """A batch of prompts holds no tensor (and Lightning's walk through it refuses frozen dataclasses)."""
        return batch

    # Training ---------------------------------------------------------------------------------------------------------

    def update(self, role: str, loss: Tensor) -> Tensor:
        """Back-propagate, clip and step one role's optimizer; returns the gradient norm before clipping."""
        self.backward_in(role, loss)
        return self.step_optimizer(role)

    def backward_in(self, role: str, loss: Tensor) -> None:
        """Back-propagate in the role: gradient checkpointing recomputes the forward pass with the adapters active then."""
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the {role} loss is {loss.item()} at step {self.global_step}; nothing was updated"
            )
        with self.roles.role(role):
            self.manual_backward(loss)

    def accumulate(self, role: str, losses: Sequence[Callable[[], Tensor]], scale: float) -> Tensor:
        """Back-propagate `scale` times each loss as it is computed; gradients are synchronised once, with the last."""
        total = torch.zeros((), device=self.device)
        for number, loss_of in enumerate(losses, start=1):
            with nullcontext() if number == len(losses) else self.without_gradient_sync():
                loss = scale * loss_of()
                self.backward_in(role, loss)
                total += loss.detach()
        return total

    def without_gradient_sync(self) -> AbstractContextManager:
        """Backward passes in the body add up on each rank; the next one outside brings the sum of all of them together."""
        if self._is_sharded:
            return gradient_sync_paused(self.bases)
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def step_optimizer(self, role: str) -> Tensor:
        """Clip and step one role's optimizer on the gradients that it has; returns their norm before clipping."""
        settings = self.generator_optimizer if role == GENERATOR else self.fake_optimizer
        parameters = self.parameters_of(role)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not torch.isfinite(norm):  # a finite loss may have such a gradient, and clipping would spread it
            raise FloatingPointError(
                f"the norm of the {role} gradient is {norm.item()} at step {self.global_step}; nothing was updated"
            )
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, norm)
        # Lightning counts the steps of the optimizers it wraps: the generator's alone.
        optimizers = self.optimizers(use_pl_optimizer=role == GENERATOR)
        assert isinstance(optimizers, list)
        optimizer = optimizers[0 if role == GENERATOR else 1]
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.global_step, self.trainer.max_steps)
        optimizer.step()
        optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def update_ema(self, moves: int) -> None:
        """Move the average towards the generator as it is now; `moves` are offered, see `EMASettings`."""
        kept = self.ema.kept(moves, updates=self.global_step)
        if kept == 1:
            return
        for average, parameter in zip(self.parameters_of(EMA), self.parameters_of(GENERATOR), strict=True):
            average.lerp_(parameter, 1 - kept)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Log the seconds that the body takes as `time/NAME`."""
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.log(f"time/{name}", time.perf_counter() - start)
