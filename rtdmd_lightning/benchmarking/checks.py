"""What `bench --gpu` does, in its order: what is short and what the rest stands on comes first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rtdmd_lightning.benchmarking.attention import attention
from rtdmd_lightning.benchmarking.diagnosis import updates_by_hand
from rtdmd_lightning.benchmarking.machine import machine
from rtdmd_lightning.benchmarking.predictions import PREDICTIONS, predictions
from rtdmd_lightning.benchmarking.probe import Probe
from rtdmd_lightning.benchmarking.stage2 import decoding, reinforcement
from rtdmd_lightning.benchmarking.tiny import families, strategies
from rtdmd_lightning.benchmarking.training import cold_start


@dataclass(frozen=True)
class Check:
    """One process.

    Args:
        name: as `--only` names it.
        function: what it does. It is sent to another process, so it must be of a module.
        seconds: after so many it is ended.
        least: with less time than this left it is not begun.
        gib: GiB of memory that it needs; on a smaller device it is not begun.
        if_failed: it is begun only if a part of this check failed.
        against: a check whose seconds are compared with this one's.
        environment: variables that are set before its process uses the device.
        on_device: whether it uses the device.
    """

    name: str
    function: Callable[[Probe], None]
    seconds: float
    least: float
    gib: float = 0
    if_failed: str | None = None
    against: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    on_device: bool = True


SWITCHES: Mapping[str, tuple[str, ...]] = {
    "autocast": ("--trainer.precision=bf16-mixed",),
    "cuDNN attention": ("--cudnn_attention=true",),
    "no checkpointing": ("--model.backbone.gradient_checkpointing=false",),
}
"""Options that stage 1 of SD3.5-M is timed with, against the same without: adding one is a line."""

STAGE_2_SWITCHES: Mapping[str, tuple[str, ...]] = {
    "VAE channels last": ("--model.backbone.channels_last_vae=true",),
    "VAE in bfloat16": ("--model.backbone.vae_dtype=bfloat16",),
    "float32 products at highest precision": ("--float32_matmul_precision=highest",),
}
"""The same for stage 2."""

COMPILE: Mapping[str, tuple[str, ...]] = {"compile": ("--model.compile=blocks",)}
"""For both stages; the first steps take minutes."""

DIAGNOSES: dict[str, dict[str, Any]] = {
    "named": {"named": True},
    "blocking": {},
    "no cuDNN attention": {"cudnn_attention": False},
    "batch of 4": {"options": ("--model.batch_size=4",)},
    "few blocks": {"few_blocks": True},
}
"""What is changed where FLUX.1-dev fails. In `BLOCKING` every launch waits for its kernel."""

BLOCKING = ("named", "blocking")


def switches(
    stage: str,
    function: Callable[..., None],
    options: Mapping[str, tuple[str, ...]],
    seconds: float = 60,
    least: float = 25,
) -> list[Check]:
    """A check for each entry of `SWITCHES`, `STAGE_2_SWITCHES` or `COMPILE`, held against the stage's own."""
    return [
        Check(f"{stage}: {name}", partial(function, options=chosen), seconds, least, gib=70, against=stage)
        for name, chosen in options.items()
    ]


CHECKS = [
    Check("machine", machine, 40, 10),
    Check("attention", attention, 45, 10),
    Check("sd35m", partial(cold_start, name="sd35m", profiled=True), 75, 25, gib=16),
    Check("stage2", reinforcement, 90, 40, gib=50),
    Check("tiny", families, 60, 20),
    Check("flux1", partial(cold_start, name="flux1", cycles=2), 60, 25, gib=36),
    *(
        Check(
            f"flux1: {name}",
            partial(updates_by_hand, **changed),
            40,
            12,
            gib=36,
            if_failed="flux1",
            environment={"CUDA_LAUNCH_BLOCKING": "1"} if name in BLOCKING else {},
        )
        for name, changed in DIAGNOSES.items()
    ),
    Check("klein", partial(cold_start, name="klein", cycles=2), 60, 25, gib=36),
    *switches("sd35m", partial(cold_start, name="sd35m", warm_up=2), SWITCHES),
    *switches("stage2", reinforcement, STAGE_2_SWITCHES),
    Check("decode", decoding, 40, 15, gib=40),
    Check("strategies", strategies, 40, 15),
    *switches("sd35m", partial(cold_start, name="sd35m", warm_up=2), COMPILE, 300, 90),
    *switches("stage2", reinforcement, COMPILE, 400, 150),
    # The fake device must not wake the real one.
    Check(PREDICTIONS, predictions, 300, 30, on_device=False, environment={"CUDA_VISIBLE_DEVICES": ""}),
]
