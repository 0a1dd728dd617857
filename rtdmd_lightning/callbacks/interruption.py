"""Ending a run by a signal: after the running update, on every process after the same one, with its state saved."""

import os
import signal
import sys
from datetime import timedelta

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import ParallelStrategy
from torch.distributed import PrefixStore, Store, TCPStore

from rtdmd_lightning.utils.checkpointing import CHECKPOINTS, LAST
from rtdmd_lightning.utils.run_folder import run_folder
from rtdmd_lightning.utils.stopping import ENDING, GRACE, StopSignals

REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)


class Interruption(Checkpoint):
    """At SIGTERM or Ctrl-C, finish the running update, save `RUN_DIR/checkpoints/last.ckpt` and exit with status 128 + signal.

    An update that takes longer than `grace` is abandoned: the last checkpoint is then what the run goes on from. It is the
    same on all processes, whichever of them hears the signal. A second Ctrl-C ends a process at once.

    Where Lightning requeues a SLURM job at a signal (`SLURMEnvironment`), that too waits for the end of the update, and
    `last.ckpt` is saved first.

    Lightning's own handler of SIGTERM exits with status 0, and on several processes waits in a broadcast for those that heard
    nothing. Lightning calls checkpoints after all other callbacks, so an update's evaluation is made before the run ends.

    Args:
        grace: seconds that an update, and the evaluation after it, may still take.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self.grace = grace
        self._signals: StopSignals | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning listens from soon after this until `on_train_start`; its own answer to SIGTERM may wait for ever."""
        trainer._signal_connector._sigterm_notifier_fn = lambda signum, _: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._requeue = {one: signal.getsignal(one) for one in REQUEUE}
        requeues = [one for one, handler in self._requeue.items() if callable(handler)]
        self._signals = StopSignals(requeues, shared_store(trainer), self.grace)
        self._signals.listen()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        assert self._signals is not None
        due = self._signals.due(trainer.global_step)
        if not due:
            return
        last = run_folder(trainer) / CHECKPOINTS / LAST
        trainer.save_checkpoint(last)
        for one in due:
            if one not in ENDING:
                requeue = self._requeue[one]
                assert callable(requeue)
                requeue(one, None)
        if ending := [one for one in due if one in ENDING]:
            if trainer.is_global_zero:
                said = (
                    f"{ending[0].name}: the run has ended after update {trainer.global_step}, whose state is in {last}"
                )
                print(f"{said}; --ckpt_path=last goes on with it", file=sys.stderr, flush=True)
            raise SystemExit(128 + ending[0])

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        self._close()

    def on_train_end(self, trainer, pl_module) -> None:
        """After the last evaluation and the export, and before Lightning restores the handlers that it found."""
        self._close()

    def _close(self) -> None:
        if self._signals is not None:
            self._signals.close()
            self._signals = None


def shared_store(trainer: L.Trainer) -> Store | None:
    """A connection of its own to where the processes met, which another thread may use; None for one process."""
    if trainer.world_size == 1:
        return None
    assert isinstance(trainer.strategy, ParallelStrategy)
    environment = trainer.strategy.cluster_environment
    assert environment is not None
    store = TCPStore(environment.main_address, environment.main_port, is_master=False, timeout=timedelta(seconds=30))
    return PrefixStore(f"rtdmd stop {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
