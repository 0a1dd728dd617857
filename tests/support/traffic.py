"""Counts what passes between the host and fake CUDA tensors, which exist on a machine without a GPU."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.planning.fake_device import faked
from rtdmd_lightning.planning.fake_module import read_without_numbers
from rtdmd_lightning.planning.parts import pipeline_configs
from rtdmd_lightning.planning.weightless import Weightless, block_kinds, weightless

CUDA = torch.device("cuda:0")


class Traffic(TorchDispatchMode):
    """Copies to the device, by whether the host waits for them, and reads from it, for which it always waits.

    A copy from pageable memory makes the host wait too; one of a fake tensor does not tell, so `blocking` are the copies that are
    not `non_blocking`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def take(self) -> Counter[str]:
        """What was counted since the last time."""
        counts, self.counts = self.counts, Counter()
        return counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        before = {tensor.device.type for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)}
        if func is torch.ops.aten._local_scalar_dense.default and before == {"cuda"}:
            self.counts["reads"] += 1
        elif func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            ends = source.device.type, result.device.type
            if ends == ("cpu", "cuda"):
                self.counts["copies"] += 1
                if not (kwargs.get("non_blocking") or args[2:] == (True,)):
                    self.counts["blocking copies"] += 1
            elif ends == ("cuda", "cpu"):
                self.counts["reads"] += 1
        return result


@contextmanager
def on_fake_cuda(module: FewStepModule) -> Iterator[Traffic]:
    """A module that is not configured yet, on a fake device; what the body does there is counted.

    It has no weights: what is read from the device is 1.
    """
    configs = pipeline_configs(module.backbone)
    module.backbone = weightless(
        module.backbone, Weightless(type(module.backbone), configs, block_kinds(module.backbone, configs))
    )
    module.read_adapter = partial(read_without_numbers, module.lora.scale)
    with faked():
        module.configure_model()
        module.to(CUDA)
        module.backbone.to(CUDA)
        module.embed.remember("", module.backbone.blank_conditioning(1))
        with Traffic() as traffic:
            yield traffic
