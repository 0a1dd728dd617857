"""What was computed of a prompt once is remembered for the next time."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TypeVar

Row = TypeVar("Row")


class PromptMemory(OrderedDict[str, Row]):
    """Rows by prompt, in the order of their last use.

    A row must own its memory: a view would keep its whole batch's after the rest of that was forgotten.
    """

    def recall(self, prompts: list[str], compute: Callable[[list[str]], Iterable[Row]], capacity: int) -> list[Row]:
        """A row a prompt. Those that are not remembered are computed together, each once; beyond `capacity` rows, the ones
        that were not used for the longest time are forgotten."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self]
        fresh = dict(zip(new, compute(new), strict=True)) if new else {}
        rows = [fresh[prompt] if prompt in fresh else self[prompt] for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            self[prompt] = row
            self.move_to_end(prompt)
        while len(self) > capacity:
            self.popitem(last=False)
        return rows
