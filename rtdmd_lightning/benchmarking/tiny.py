"""Tiny models of all families, both stages: the same training on the device and on the CPU, in float32."""

from collections.abc import Sequence

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from rtdmd_lightning.benchmarking.probe import Probe
from rtdmd_lightning.benchmarking.runs import TINY, TINY_EPOCH, random_run
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.roles.roles import GENERATOR

FAMILIES = {"SD3": "sd35m", "FLUX.1": "flux1_dev", "FLUX.2": "flux2_klein_4b"}
"""Those of `configs/cold_start` and `configs/rtdmd`."""

STEPS = 2
TOLERANCE = 1e-2
"""Of how far the parameters moved. TF32, which cuDNN's convolutions use by default, has a relative precision of 1e-3."""

# A large eps makes Adam's steps proportional to the gradient: rounding cannot flip the sign of one.
FLOAT32 = (
    "--trainer.precision=32-true",
    "--model.backbone.dtype=float32",
    *(
        f"--model.{role}_optimizer.{option}=1e-2"
        for role in ("generator", "fake")
        for option in ("learning_rate", "eps")
    ),
)
CYCLE = ("--model.fake_update_ratio=2",)
STRATEGIES = {
    "one device": ("--trainer.strategy=auto",),
    "DDP": ("--trainer.strategy=ddp_find_unused_parameters_true",),
    "FSDP2": ("--config=configs/parts/fsdp2.yaml", "--trainer.strategy.shard_size=1"),
}


def families(probe: Probe) -> None:
    torch.set_num_threads(1)  # tensors this small only wait for one another
    for family, config in FAMILIES.items():
        for stage, folder in ((1, "cold_start"), (2, "rtdmd")):
            probe.attempt(
                f"{family} stage {stage}", compare, probe, f"{family} stage {stage}", f"configs/{folder}/{config}.yaml"
            )


def compare(probe: Probe, title: str, config: str) -> None:
    host = Probe(probe.check, torch.device("cpu"), True, probe.output, probe.left(), probe.send)
    expected, moved = trained(host, config)
    found, _ = trained(probe, config)
    apart = float((found - expected).abs().max())
    probe.at_most(
        f"{title}: apart from the CPU's", apart / moved, TOLERANCE, f"of how far the parameters moved, {moved:.1e}"
    )


def strategies(probe: Probe) -> None:
    """DDP and FSDP2 in this one process against no strategy at all."""
    torch.set_num_threads(1)
    weights: dict[str, torch.Tensor] = {}
    for name, options in STRATEGIES.items():
        result = probe.attempt(name, trained, probe, "configs/cold_start/sd35m.yaml", options)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if result is None:
            continue
        weights[name], moved = result
        apart = float((weights[name] - weights["one device"]).abs().max()) if "one device" in weights else float("nan")
        probe.at_most(
            f"{name}: apart from one device's",
            apart / moved,
            TOLERANCE,
            f"of how far the parameters moved, {moved:.1e}",
        )


def trained(
    probe: Probe, config: str, strategy: Sequence[str] = STRATEGIES["one device"]
) -> tuple[torch.Tensor, float]:
    """The generator after some steps `[N]`, on the CPU, and how far it moved at most."""
    weights: list[torch.Tensor] = []

    def keep(trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, FewStepModule)
        state = module.roles.own_state_dict(GENERATOR)
        weights.append(torch.cat([state[key].float().flatten() for key in sorted(state)]))

    epoch = TINY_EPOCH if "rtdmd" in config else CYCLE
    torch.manual_seed(0)
    with random_run(
        probe,
        config,
        [*TINY, *FLOAT32, *epoch],
        STEPS,
        small=True,
        place=torch.device("cpu"),
        strategy=strategy,
        callbacks=[LambdaCallback(on_train_start=keep, on_train_end=keep)],
    ) as run:
        run.trainer.fit(run.model, run.datamodule)
    before, after = weights
    return after, float((after - before).abs().max())
