"""How a run is spread over processes: Lightning's strategies with the options that this project needs, and no others."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh

from rtdmd_lightning.roles.sharding import Sharding
from rtdmd_lightning.utils.errors import require
from rtdmd_lightning.utils.processes import TIMEOUT


class DDP(DDPStrategy):
    """Every process holds the whole base. (DDP must know that adapters take turns: `find_unused_parameters`.)

    Args:
        timeout: how long a process waits for the others in a collective, as hours:minutes:seconds.
    """

    def __init__(self, timeout: timedelta = TIMEOUT) -> None:
        super().__init__(find_unused_parameters=True, timeout=timeout)


class FSDP2(ModelParallelStrategy):
    """The base is sharded block by block over `shard_size` processes that are neighbours by rank, `replicate_size` times.

    The two numbers multiply to the number of processes. With `shard_size` the processes of a node, weights are gathered within
    nodes alone, and between nodes go only the gradients of the adapters (hybrid sharding). A checkpoint is one file, which any
    strategy reads.

    Args:
        shard_size: how many processes hold the base together.
        replicate_size: how many such groups there are.
        reshard_after_forward: free a block's gathered weights after its forward pass, and gather them again for the backward
            pass; false is faster and keeps them all in between.
        prefetch: how many blocks ahead are gathered while one computes; 0 leaves it to FSDP2.
        timeout: how long a process waits for the others in a collective, as hours:minutes:seconds.
    """

    def __init__(
        self,
        shard_size: int,
        replicate_size: int = 1,
        reshard_after_forward: bool = True,
        prefetch: int = 1,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        super().__init__(
            data_parallel_size=shard_size * replicate_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=timeout,
        )
        self.shard_size, self.replicate_size = shard_size, replicate_size
        self.reshard_after_forward, self.prefetch = reshard_after_forward, prefetch

    def check_sizes(self, processes: int) -> None:
        """Raises UserError for numbers that no run of so many processes has. (A constructor's would drown in the parser's.)"""
        shards, replicas = self.shard_size, self.replicate_size
        require(
            shards >= 1 and replicas >= 1 and shards * replicas == processes,
            f"trainer.strategy has shard_size {shards} x replicate_size {replicas} = {shards * replicas}, and the run has "
            f"{processes} processes: give e.g. --trainer.strategy.shard_size={processes} --trainer.strategy.replicate_size=1",
        )
        require(self.prefetch >= 0, f"trainer.strategy.prefetch must be at least 0, not {self.prefetch}")

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """As DDP has it: what `configure_model` makes, it makes on the device. Text encoders are then read right to it."""
        with super().tensor_init_context(empty_init), self.root_device:
            yield

    def sharding(self) -> Sharding:
        """What the transformers are sharded by; there must be a process group, and every process must ask."""
        mesh = self.device_mesh["data_parallel"]
        if self.replicate_size > 1:
            sizes = (self.replicate_size, self.shard_size)
            mesh = init_device_mesh(self.root_device.type, sizes, mesh_dim_names=("replicate", "shard"))
        return Sharding(mesh, self.reshard_after_forward, self.prefetch)
