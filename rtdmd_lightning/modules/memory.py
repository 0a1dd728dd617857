"""How a run is fitted into less of a device's memory, at a price in time alone."""

from dataclasses import dataclass
from typing import Literal

from rtdmd_lightning.utils.errors import require

Offload = Literal["text_encoders", "vae", "rewards", "base"]

REWARDS = "rewards"


@dataclass(frozen=True)
class MemorySettings:
    """Options of every algorithm; each stands by itself under `model`.

    micro_batch_size: samples of one forward pass on one process; None: all that it has of a batch. Gradients add up over a
        process's micro-batches and are synchronised once: the update is that of the whole batch.
    offload: parts that lie in CPU memory between the phases that use them: `text_encoders` are on the device while the prompts of
        a step are embedded, the `vae` while a step is rolled out and while rewards are back-propagated, each of the `rewards`
        while it scores the epoch's images, which wait for it on the CPU (3 MiB each at 512 pixels, 12 MiB at 1024), and each
        weight of a quantised `base` for the length of a product: every pass copies the whole base.
    """

    micro_batch_size: int | None = None
    offload: tuple[Offload, ...] = ()

    def __post_init__(self) -> None:
        require(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            f"model.micro_batch_size must be at least 1, not {self.micro_batch_size}",
        )
