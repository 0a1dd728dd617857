"""What a run asks of an accelerator, counted without one: kernel launches, waits, copies, operations.

A training step of the run's own module and trainer is executed on the fake device (`planning/fake_device.py`), with two blocks of
each kind and with three; all blocks follow exactly (`planning/blocks.py`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from rtdmd_lightning import fit
from rtdmd_lightning.fitting.command_line import FitCLI
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.planning.blocks import few, for_all_blocks
from rtdmd_lightning.planning.fake_device import FAKE_DEVICE, READ_A_NUMBER
from rtdmd_lightning.planning.fake_module import fake_module, known_shapes
from rtdmd_lightning.planning.fake_training import train_on_fake_device
from rtdmd_lightning.utils.command_line import wide_console

ON_ONE_DEVICE = (
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--trainer.enable_progress_bar=false",
    "--data.prompts=shapes:train",
)

ATEN = torch.ops.aten
NOTHING_TO_LAUNCH = {
    torch.ops.prim.device.default,
    ATEN._unsafe_view.default,
    ATEN.detach.default,
    ATEN.empty.memory_format,
    ATEN.empty_like.default,
    ATEN.empty_strided.default,
    ATEN.new_empty.default,
    ATEN.new_empty_strided.default,
    ATEN.lift_fresh.default,
    ATEN.is_same_size.default,
    ATEN._local_scalar_dense.default,
}
WAITS = {READ_A_NUMBER, ATEN.nonzero.default, ATEN.masked_select.default, ATEN.equal.default}
"""Operations whose result the host must know."""

IN_PLACE = {ATEN.addmm_: ATEN.addmm}
"""What torch's counter of operations does not know."""

COPIES = {ATEN._to_copy.default, ATEN.copy_.default}


class Counts(NamedTuple):
    """Of one phase of a training step.

    launches: operations on the device that are more than a view.
    waits: of the host for the device: numbers that are read, copies back.
    copies: to the device, for which the host waits.
    switches: of adapters, from one role's to another's.
    flops: floating-point operations of matrix products, convolutions and attention.
    """

    launches: int = 0
    waits: int = 0
    copies: int = 0
    switches: int = 0
    flops: int = 0


class Counting(TorchDispatchMode):
    """Counts what is dispatched while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        from_device = any(tensor.device == FAKE_DEVICE for tensor in given)
        to_device = any(isinstance(value, Tensor) and value.device == FAKE_DEVICE for value in tree_iter(result))
        if from_device or to_device:
            self.found["launches"] += not (func.is_view or func in NOTHING_TO_LAUNCH)
            self.found["waits"] += func in WAITS
            formula = flop_registry.get(IN_PLACE.get(func._overloadpacket, func._overloadpacket))
            self.found["flops"] += 0 if formula is None else formula(*args, **kwargs, out_val=result)
        if func in COPIES and not (
            kwargs.get("non_blocking") or (func is ATEN.copy_.default and len(args) > 2 and args[2])
        ):
            source_is_there = given[-1].device == FAKE_DEVICE
            self.found["copies"] += to_device and not source_is_there
            self.found["waits"] += source_is_there and not to_device
        return result


class Watch:
    """Counts by phase, as the module's `timed` names them."""

    def __init__(self, module: FewStepModule) -> None:
        self.module, self.phases = module, dict[str, Counts]()
        self.switches = 0
        self.active: tuple[str, ...] = ()

    @contextmanager
    def watching(self) -> Iterator[None]:
        timed, role = self.module.timed, self.module.roles.role

        @contextmanager
        def counted(name: str) -> Iterator[None]:
            before, mode = self.switches, Counting()
            with mode, timed(name):
                yield
            self.phases[name] = Counts(**mode.found, switches=self.switches - before)

        @contextmanager
        def switched(name: str) -> Iterator[None]:
            before = self.active
            self.activate(self.module.roles.stacks[name])
            with role(name):
                yield
            self.activate(before)

        self.module.timed = counted  # type: ignore[method-assign]
        self.module.roles.role = switched  # type: ignore[method-assign]
        yield
        del self.module.timed, self.module.roles.role

    def activate(self, adapters: tuple[str, ...]) -> None:
        self.switches += adapters != self.active
        self.active = adapters


def count(config: Path, options: Sequence[str] = ()) -> dict[str, Counts]:
    """By phase of a training step of a config on one device, of one fake-score update in stage 1.

    Raises UserError for a config whose shapes are not known.
    """

    def described(*more: str) -> AbstractContextManager[FitCLI]:
        return fit.bare_run(config, [*ON_ONE_DEVICE, *options, *more], max_steps=1)

    with described() as run:
        configs, blocks = known_shapes(run.model)
        once = ("--model.fake_update_ratio=1",) if isinstance(run.model, ACDMDModule) else ()
    found = []
    for fewer in few(blocks):
        with described(*once) as run, fake_module(run.model, configs, fewer) as module:
            found.append(count_step(module, run.trainer))
    return {phase: Counts(*numbers) for phase, numbers in for_all_blocks(found, blocks).items()}


def count_step(module: FewStepModule, trainer: Trainer) -> dict[str, Counts]:
    """By phase of one training step on the fake device; inside `faked`."""
    watch = Watch(module)
    with watch.watching():
        train_on_fake_device(module, trainer)
    return watch.phases


def print_counts(counts: Path, options: list[str] | None = None) -> None:
    """Count a training step's kernel launches, waits and copies, without a GPU.

    Args:
        counts: the config of the run.
        options: overrides for it, as on the command line of `rtdmd_lightning.fit`.
    """
    table = Table("", *Counts._fields, title=f"{counts}: of a training step")
    for phase, numbers in count(counts, options or []).items():
        table.add_row(phase, *(f"{number:,}" for number in numbers[:-1]), f"{numbers.flops / 1e12:.1f} T")
    wide_console().print(table)
