"""Stage 2 of SD3.5-M through the real trainer, with rewards of the real shapes and random weights."""

from collections.abc import Sequence
from functools import partial

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from rtdmd_lightning.benchmarking.probe import Probe
from rtdmd_lightning.benchmarking.runs import RUNS, TINY, TINY_EPOCH, random_run
from rtdmd_lightning.benchmarking.stopwatch import Stopwatch
from rtdmd_lightning.benchmarking.training import WithinTime, memory
from rtdmd_lightning.modules import RTDMDModule

VAE_SCALE, LATENT_CHANNELS = 8, 16  # SD3's


class Ratios(Callback):
    """The policy ratio of every epoch. Its one update is the first under its weights, so it should be 1."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if "policy/ratio_deviation" not in logged:
            return self.probe.row(
                f"epoch {batch_idx}: ratio deviation", "none", good=False, note="no sample had an advantage"
            )
        note = f"{logged['policy/kept_samples']:.0f} samples kept"
        deviation = logged["policy/ratio_deviation"]
        self.probe.at_most(f"epoch {batch_idx}: ratio deviation", deviation, pl_module.policy.clip_range, note)
        self.probe.at_most(f"epoch {batch_idx}: clipped share", logged["policy/clipped"], 0)


def reinforcement(probe: Probe, options: Sequence[str] = (), *, epochs: int = 2) -> None:
    published, watch = RUNS["stage2"], Stopwatch(warm_up=1)

    def report(trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, RTDMDModule)
        for phase, times in watch.seconds.items():
            probe.row(
                "epoch" if phase == "training_step" else phase,
                times[-1],
                "s",
                note=f"{module.micro_batches} x {module.batch_size} samples",
            )
        memory(probe)

    callbacks = [
        Ratios(probe),
        WithinTime(probe, 1, reserve=2),
        watch,
        LambdaCallback(on_train_end=report),
    ]
    with random_run(
        probe, published.config, [*sized(probe), *options], epochs, small=probe.small, callbacks=callbacks
    ) as run:
        run.trainer.fit(run.model, run.datamodule)


def sized(probe: Probe) -> list[str]:
    """Options of an epoch on one device."""
    return [*RUNS["stage2"].options, *((*TINY, *TINY_EPOCH) if probe.small else ())]


def decoding(probe: Probe) -> None:
    """The autoencoder of SD3.5-M, and the CLIP of a reward behind it."""
    with random_run(
        probe,
        RUNS["stage2"].config,
        sized(probe),
        1,
        small=probe.small,
        few_blocks=True,
    ) as run:
        module = run.model
        assert isinstance(module, RTDMDModule)
        with probe.device:
            module.backbone.load()
    for images, side in ((1, 64),) if probe.small else ((4, 512), (8, 512), (1, 1024)):
        probe.attempt(f"{images} x {side} px", decode, probe, module, images, side, least=5)


def decode(probe: Probe, module: RTDMDModule, images: int, side: int) -> None:
    side_of_latents = side // VAE_SCALE
    latents = torch.randn(
        images, LATENT_CHANNELS, side_of_latents, side_of_latents, device=probe.device, requires_grad=True
    )
    prompts: list[str] = [""] * images

    def decoded() -> torch.Tensor:
        return module.backbone.decode(latents)

    def scored() -> torch.Tensor:
        return torch.stack(list(module.rewards.differentiable_scores(decoded(), prompts, [{}] * images).values()))

    title = f"{images} x {side} px"
    for what, function in (("decode", decoded), ("decode and score", scored)):
        probe.restart_peak()
        before = probe.peak_gib() or 0.0
        with torch.no_grad():
            without = probe.clock(function, 2, 1)
        with_gradient = probe.clock(partial(backward, function, latents), 2, 1)
        peak = probe.peak_gib()
        note = "" if peak is None else f"peak {peak - before:.1f} GiB"
        probe.row(
            f"{title}: {what}, with gradient", with_gradient * 1e3, "ms", note=f"without {without * 1e3:.0f} ms {note}"
        )


def backward(function, latents: torch.Tensor) -> None:
    torch.autograd.grad(function().mean(), latents)
