"""Where a run of FLUX.1-dev fails: the same fake-score update by hand, each time with one thing changed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from rtdmd_lightning.benchmarking.probe import Probe
from rtdmd_lightning.benchmarking.runs import RUNS, TINY, random_run
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.planning.phases import FAKE_STEP, GENERATOR_STEP, ROLLOUT, cold_start_phases
from rtdmd_lightning.utils.processes import synchronize


class NamedFailure(TorchDispatchMode):
    """Waits for every operation: the one that fails is named, with the shapes, strides and dtypes of its tensors."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        try:
            result = func(*args, **kwargs or {})
            synchronize(self.device)
        except RuntimeError as error:
            tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
            told = ", ".join(
                f"{tuple(t.shape)} strides {t.stride()} {str(t.dtype).removeprefix('torch.')}" for t in tensors
            )
            raise RuntimeError(f"{func} of {told}: {error}") from error
        return result


def updates_by_hand(
    probe: Probe,
    options: Sequence[str] = (),
    *,
    few_blocks: bool = False,
    named: bool = False,
    cudnn_attention: bool = True,
) -> None:
    """A rollout, a fake-score step and a generator step of FLUX.1-dev, without trainer and optimizer.

    Args:
        options: further ones of the run.
        few_blocks: one transformer block of each kind.
        named: every operation is waited for, and the one that fails is named.
        cudnn_attention: whether cuDNN's attention may be chosen.
    """
    torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)
    sized = [*RUNS["flux1"].options, *(TINY if probe.small else ()), *options]
    with random_run(probe, RUNS["flux1"].config, sized, 1, small=probe.small, few_blocks=few_blocks) as run:
        module = run.model
        assert isinstance(module, ACDMDModule)
        with probe.device:
            module.configure_model()
        module.to(probe.device)
        module.on_fit_start()
        phases = cold_start_phases(module, module.batch_size)
        for name in (ROLLOUT, FAKE_STEP, GENERATOR_STEP):
            with run.trainer.precision_plugin.train_step_context():
                if named:
                    with NamedFailure(probe.device):
                        phases[name]()
                else:
                    phases[name]()
            probe.synchronize()
            probe.row(name, "passes", good=True)
