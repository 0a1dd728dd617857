"""How a run is fitted into less of a device's memory, at a price in time alone."""

from dataclasses import dataclass

from rtdmd_lightning.utils.errors import require


@dataclass(frozen=True)
class MemorySettings:
    """Options of every algorithm; each stands by itself under `model`.

    micro_batch_size: samples of one forward pass on one process; None: all that it has of a batch. Gradients add up over a
        process's micro-batches and are synchronised once: the update is that of the whole batch.
    """

    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        require(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            f"model.micro_batch_size must be at least 1, not {self.micro_batch_size}",
        )
