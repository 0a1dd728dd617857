"""Adapters of random numbers for the layers of `tests/support/tiny.py`'s transformer."""

import torch

from rtdmd_lightning.roles import Adapter, LayerUpdate


def random_adapter(
    rank: int, *, scale: float = 2.0, layers: tuple[str, ...] = ("to_q", "add_k_proj", "to_out.0")
) -> Adapter:
    generator = torch.Generator().manual_seed(rank)
    paths = [f"transformer_blocks.{block}.attn.{layer}" for block in range(3) for layer in layers]
    halves = [(torch.randn(rank, 32, generator=generator), torch.randn(32, rank, generator=generator)) for _ in paths]
    updates = (LayerUpdate(0.3 * down, 0.3 * up, scale) for down, up in halves)
    return Adapter(dict(zip(paths, updates, strict=True)), f"rank {rank}")


def assert_same_update(one: Adapter, other: Adapter) -> None:
    """To the last bit, whatever their scales are."""
    assert one.layers.keys() == other.layers.keys()
    for path, update in one.layers.items():
        assert update.rank == other.layers[path].rank, path
        assert torch.equal(update.delta(), other.layers[path].delta()), path


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.layers.keys() == other.layers.keys()
    for path, update in one.layers.items():
        assert update.scale == other.layers[path].scale, path
        assert torch.equal(update.down, other.layers[path].down) and torch.equal(update.up, other.layers[path].up), path
