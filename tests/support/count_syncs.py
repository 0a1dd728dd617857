"""A callback that counts how often two processes reduce their gradients."""

import json
import os
from pathlib import Path

import torch
from lightning import Callback
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils._python_dispatch import TorchDispatchMode


class CountScatters(TorchDispatchMode):
    """Counts the reduce-scatters that FSDP2 calls (CommDebugMode's module tracking breaks inside Lightning's hooks)."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "reduce_scatter" in func.name()
        return func(*args, **(kwargs or {}))


class CountSyncs(Callback):
    """Writes how often gradients were reduced over the ranks in the first epoch: by DDP, and per sharded block by FSDP2."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.count = 0
        self.collectives = CountScatters()

    def on_train_start(self, trainer, pl_module) -> None:
        if isinstance(trainer.strategy.model, torch.nn.parallel.DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, self.hook)

    def hook(self, group, bucket):
        self.count += bucket.is_last()
        return allreduce_hook(group, bucket)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.collectives.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.collectives.__exit__(None, None, None)
        if trainer.global_rank == 0 and not os.path.exists(self.path):
            Path(self.path).write_text(json.dumps({"ddp": self.count, "fsdp2": self.collectives.count}))
