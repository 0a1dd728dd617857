"""What was computed of a prompt once is remembered for the next time."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Row = TypeVar("Row")


class PromptMemory(Generic[Row]):
    """Rows by prompt, as many as fit; the ones that were not used for the longest time are forgotten.

    A row must own its memory: a view would keep its whole batch's after the rest of that was forgotten.

    Args:
        capacity: what the sizes of all rows together may be.
        size: of a row. By default every row counts as one, and `capacity` is a number of prompts.
    """

    def __init__(self, capacity: int, size: Callable[[Row], int] = lambda row: 1) -> None:
        self.capacity = capacity
        self._size = size
        self._rows: OrderedDict[str, Row] = OrderedDict()  # in the order of their last use
        self._used = 0

    def recall(self, prompts: list[str], compute: Callable[[list[str]], Iterable[Row]]) -> list[Row]:
        """A row a prompt; those that are not remembered are computed together, each once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        fresh = dict(zip(new, compute(new), strict=True)) if new else {}
        rows = [fresh[prompt] if prompt in fresh else self._rows[prompt] for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if prompt not in self._rows:
                self._used += self._size(row)
            self._rows[prompt] = row
            self._rows.move_to_end(prompt)
        while self._used > self.capacity:
            _, forgotten = self._rows.popitem(last=False)
            self._used -= self._size(forgotten)
        return rows
