"""Networks of few blocks: a run is traced with two blocks of each kind, and for each kind once more with three of it.

Every further block of a kind adds what its third one did, so the bytes of all of them follow: those of weights exactly, those of
activations as far as the highest moment is the same one. (Not from one block and two: the moment at which one block is computed
again while another one's gradients are there comes with the second.)
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import nn
from torch.utils._pytree import tree_map

Kind = tuple[tuple[str, tuple[int, ...]], ...]
"""What blocks have in common: the names and shapes of their parameters."""

FEW = 2
Bytes = TypeVar("Bytes")


def kinds(network: nn.Module, classes: tuple[type[nn.Module], ...]) -> Counter[Kind]:
    """How many blocks there are of each kind."""
    return Counter(_kind(block) for blocks in _stacks(network, classes) for block in blocks)


def few(counts: Counter[Kind]) -> list[Counter[Kind]]:
    """Two blocks of each kind, or the one that there is; then, for each kind that has more, the same with three of it."""
    least = Counter({kind: min(FEW, count) for kind, count in counts.items()})
    return [least, *(least + Counter([kind]) for kind, count in counts.items() if count > FEW)]


def thin(network: nn.Module, classes: tuple[type[nn.Module], ...], counts: Counter[Kind]) -> None:
    """Leave the first blocks of each kind, in their order, as many as `counts` says."""
    room = counts.copy()
    for blocks in _stacks(network, classes):
        kept = []
        for block in blocks:
            room[_kind(block)] -= 1
            if room[_kind(block)] >= 0:
                kept.append(block)
        del blocks[:]
        blocks.extend(kept)


def for_all_blocks(traces: Sequence[Bytes], counts: Counter[Kind]) -> Bytes:
    """The bytes with all blocks, from those with each network of `few`, in its order.

    Each of `traces`, and the result, is a tree of numbers of one shape. `counts` is what `kinds` found.
    """
    further = [count - FEW for count in counts.values() if count > FEW]

    def number(least: int, *with_one_more: int) -> int:
        return least + sum(times * (more - least) for times, more in zip(further, with_one_more, strict=True))

    return tree_map(number, *traces)


def _stacks(network: nn.Module, classes: tuple[type[nn.Module], ...]) -> Iterator[nn.ModuleList]:
    for child in network.children():
        if isinstance(child, nn.ModuleList) and isinstance(child[0], classes):
            yield child


def _kind(block: nn.Module) -> Kind:
    return tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())
