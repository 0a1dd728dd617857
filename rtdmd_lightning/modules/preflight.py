"""What a training run is refused for before it loads or writes anything.

What concerns one option alone is refused where the option is read: in the settings' and modules' constructors.
"""

import os
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch.distributed import is_torchelastic_launched

from rtdmd_lightning.data.stream import samples_per_pass
from rtdmd_lightning.models.placement import BASE
from rtdmd_lightning.modules.origin import ORIGIN_KEY, check_origin
from rtdmd_lightning.modules.strategies import FSDP2
from rtdmd_lightning.modules.training import SHARDED_KEY, FewStepModule
from rtdmd_lightning.utils.checkpointing import CHECKPOINTS, LAST, read_checkpoint
from rtdmd_lightning.utils.errors import UserError, require
from rtdmd_lightning.utils.run_folder import run_folder

PRECISIONS = (None, 32, "32", "32-true", "bf16", "bf16-mixed")  # as configs may write the two that there are


def check_start(
    trainer: Trainer, module: FewStepModule, precision: str | int | None, ckpt_path: str | None
) -> Path | None:
    """The checkpoint to go on from, None to begin. Raises UserError for a run that cannot be.

    `precision` is what was asked for: on a CPU Lightning puts another in the place of some. `ckpt_path` is a checkpoint, or
    "last": this run's own last one, and where it has saved none yet, the beginning.
    """
    require(ckpt_path != "", "--ckpt_path wants a checkpoint, or 'last'; leave it out to begin")
    check_processes(trainer.world_size)
    check_trainer(trainer, precision)
    samples_per_pass(module.batch_size, trainer.world_size, module.micro_batch_size)
    check_quantization(trainer, module)
    module.check()
    folder = run_folder(trainer)
    if ckpt_path is None:
        check_unused(folder)
        return None
    checkpoint = folder / CHECKPOINTS / LAST if ckpt_path == "last" else Path(ckpt_path)
    if ckpt_path == "last" and not checkpoint.exists():
        return None
    check_resumable(checkpoint, trainer, module)
    return checkpoint


def check_trainer(trainer: Trainer, precision: str | int | None) -> None:
    """Refuse what the two manual optimizers, or adapters that take turns, do not work with."""
    require(
        precision in PRECISIONS and trainer.precision in PRECISIONS,
        f"trainer.precision {precision or trainer.precision} is not supported: adapters stay in float32, and two optimizers "
        "share no gradient scaler; give 32-true or bf16-mixed, and the frozen base's dtype as model.backbone.dtype",
    )
    require(
        trainer.limit_train_batches != 0 and trainer.max_steps != 0,
        "nothing is trained: trainer.limit_train_batches or trainer.max_steps is 0",
    )
    check_strategy(trainer)


def check_strategy(trainer: Trainer) -> None:
    """DDP must know that adapters take turns; FSDP2's sizes must be those of the run; nothing here is tensor-parallel."""
    strategy, processes = trainer.strategy, trainer.world_size
    if isinstance(strategy, FSDP2):
        strategy.check_sizes(processes)
    elif isinstance(strategy, ModelParallelStrategy):
        raise UserError(
            "trainer.strategy ModelParallelStrategy is Lightning's for tensor parallelism (tensor_parallel_size), which no "
            "model here has; for FSDP2 put --config configs/parts/fsdp2.yaml after the config"
        )
    else:
        several = isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("find_unused_parameters", False)
        require(
            processes == 1 or several or isinstance(strategy, SingleDeviceStrategy),
            f"trainer.strategy does not suit {processes} processes: give --trainer.strategy=ddp_find_unused_parameters_true, or "
            "put --config configs/parts/fsdp2.yaml after the config",
        )


def check_quantization(trainer: Trainer, module: FewStepModule) -> None:
    """FSDP2 would cut the rows of a weight apart from their scales; a base that is not quantised cannot be offloaded."""
    require(
        BASE not in module.memory.offload or module.backbone.quantization != "none",
        "model.offload names the base, which has to be quantised for that: give --model.backbone.quantization=nf4 or int8, or "
        "leave it out of model.offload",
    )
    require(
        module.backbone.quantization == "none" or not isinstance(trainer.strategy, FSDP2),
        f"model.backbone.quantization {module.backbone.quantization} does not go with FSDP2, which shards whole weights: give "
        "--trainer.strategy=ddp_find_unused_parameters_true, or --model.backbone.quantization=none",
    )


def check_processes(wanted: int) -> None:
    """Refuse processes that would each make a run of its own, all in one folder."""
    if not is_torchelastic_launched():
        return
    started = int(os.environ["WORLD_SIZE"])
    require(
        started == wanted,
        f"torchrun has started {started} processes, but the run is one of {wanted}: trainer.devices x trainer.num_nodes; give "
        f"--trainer.devices={os.environ['LOCAL_WORLD_SIZE']} and --trainer.num_nodes="
        f"{started // int(os.environ['LOCAL_WORLD_SIZE'])}, with a trainer.strategy for several",
    )


def check_unused(folder: Path) -> None:
    """Refuse to begin a run among another one's evaluations and checkpoints: nobody could tell the two apart."""
    if not (folder / "eval.jsonl").exists() and not any((folder / CHECKPOINTS).glob("*.ckpt")):
        return
    resume = "go on with it by --ckpt_path=last, or " if (folder / CHECKPOINTS / LAST).exists() else ""
    raise UserError(f"{folder} holds a run already: {resume}give this one another --run_dir, or delete that folder")


def check_resumable(checkpoint: Path, trainer: Trainer, module: FewStepModule) -> None:
    """Refuse another run's checkpoint, and one that Lightning would restore wrongly.

    Under FSDP2 an unsharded checkpoint's second optimizer is: the fake score's momentum is lost.
    """
    if not checkpoint.exists():
        raise UserError(f"ckpt_path {checkpoint} does not exist")
    found = read_checkpoint(checkpoint)
    check_origin(checkpoint, found.get(ORIGIN_KEY), module.origin())
    if isinstance(trainer.strategy, FSDP2) and not found[SHARDED_KEY]:
        raise UserError(
            f"{checkpoint} was saved without FSDP2 and cannot be resumed under it (the fake score's "
            "optimizer state would be lost); resume it with the strategy that it was saved with"
        )
