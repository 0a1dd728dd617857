"""What few blocks tell of many."""

from collections import Counter

from torch import nn

from rtdmd_lightning.planning.blocks import few, for_all_blocks, kinds, thin
from rtdmd_lightning.planning.estimate import Base


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)


class Model(nn.Module):
    """Eight blocks of three kinds, in two stacks; the list of layers holds none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2)])
        self.first = nn.ModuleList([Block(2), Block(2), Block(3), Block(2)])
        self.second = nn.ModuleList([Block(4), Block(4), Block(4), Block(4)])


def test_blocks_are_of_a_kind_by_their_shapes():
    assert sorted(kinds(Model(), (Block,)).values()) == [1, 3, 4]


def test_each_kind_is_there_twice_and_each_that_has_more_three_times_in_turn():
    narrow, single, wide = kinds(Model(), (Block,))
    assert few(kinds(Model(), (Block,))) == [
        Counter({narrow: 2, single: 1, wide: 2}),
        Counter({narrow: 3, single: 1, wide: 2}),
        Counter({narrow: 2, single: 1, wide: 3}),
    ]


def test_thinning_leaves_the_blocks_that_are_wanted_in_their_order():
    for blocks in few(kinds(Model(), (Block,))):
        model = Model()
        thin(model, (Block,), blocks)
        assert kinds(model, (Block,)) == blocks
        widths = [block.layer.in_features for block in model.first]
        assert widths in ([2, 2, 3], [2, 2, 3, 2])


def test_all_blocks_are_told_from_two_and_three_of_each_kind():
    counts = kinds(Model(), (Block,))

    def weigh(blocks: Counter) -> tuple[Base, dict[str, int]]:
        narrow, single, wide = (blocks[kind] for kind in counts)
        return Base(100 + 7 * narrow + 5 * single + 11 * wide, 11, 100), {"phase": 3 + 2 * narrow + wide}

    assert for_all_blocks([weigh(blocks) for blocks in few(counts)], counts) == weigh(counts)
