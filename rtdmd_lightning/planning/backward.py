"""The backward pass in Python: what torch's engine does, for a device that it cannot begin one on.

The order is the engine's, so that as much memory is held at a time: of the nodes that have all their gradients, the one that was
made last comes first; what a node has saved is let go when it has run. Only what training steps ask for is here: gradients of
leaves, added to their `grad`. Hooks of tensors are not called.
"""

import heapq
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

ALONE = 2
"""References to a tensor, or a storage, that one variable of this file alone has: the variable's, and that of who counts them."""

Place = tuple[Any, int]
"""A node of the graph, and which of its gradients."""


class Saved:
    """A tensor that a node keeps for its backward pass."""

    used: list["Saved"] = []
    """Those that the node which runs now has read; torch's hooks leave no other place to note them."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor

    def read(self) -> Tensor:
        assert self.tensor is not None, "a second backward pass through a graph that was not retained"
        Saved.used.append(self)
        return self.tensor


@contextmanager
def releasing() -> Iterator[None]:
    """Graphs that are recorded in the body let go of what they saved as `walk_backward` runs through them."""
    with torch.autograd.graph.saved_tensors_hooks(Saved, Saved.read):
        yield


def walk_backward(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
    inputs: Sequence[Tensor],
    allow_unreachable: bool,
    accumulate_grad: bool,
) -> tuple[()]:
    """Every node of the graph once, after all that use its output. Takes the arguments of torch's engine."""
    assert accumulate_grad and not inputs and not create_graph, "backward() of plain gradients alone is known here"
    roots: list[Place] = [(output.grad_fn, output.output_nr) for output in outputs]
    waiting = _users([node for node, _ in roots])
    received: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    for place, given in zip(roots, gradients, strict=True):
        _receive(received, place, given)
    ready: list[tuple[int, int, Any]] = []
    for node in dict.fromkeys(node for node, _ in roots):
        _queue(ready, node, waiting)
    with torch.no_grad():
        while ready:
            *_, node = heapq.heappop(ready)
            own = received.pop(node, {})
            if hasattr(node, "variable"):  # a leaf's
                if own:
                    _accumulate(node.variable, own[0])
                continue
            sent = _run(node, own, retain_graph)
            for place in node.next_functions:
                gradient = sent.pop(0) if sent else None
                if place[0] is None:
                    continue
                if gradient is not None:
                    _receive(received, place, gradient)
                waiting[place[0]] -= 1
                _queue(ready, place[0], waiting)
            own, gradient = {}, None  # let go before the next one runs
    return ()


def _run(node: Any, own: dict[int, Tensor], retain_graph: bool) -> list[Tensor | None]:
    """A node's gradients to those before it, from its own; none for a node that nothing has reached."""
    if not own:
        return []
    run = node.apply if isinstance(node, BackwardCFunction) else node  # one that is written in Python is not callable
    sent = run(*(own.get(number) for number in range(len(node._input_metadata))))
    if not retain_graph:
        for saved in Saved.used:
            saved.tensor = None
    Saved.used.clear()
    return list(sent) if isinstance(sent, tuple) else [sent]


def _queue(ready: list[tuple[int, int, Any]], node: Any, waiting: dict[Any, int]) -> None:
    """Put a node among the ready ones if it waits for nothing; those that were made later are numbered higher."""
    if not waiting[node]:
        heapq.heappush(ready, (-node._sequence_nr(), id(node), node))


def _users(roots: Iterable[Any]) -> dict[Any, int]:
    """How many edges lead to each node that the roots reach."""
    count: dict[Any, int] = defaultdict(int)
    stack, seen = list(roots), set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is not None:
                count[following] += 1
                stack.append(following)
    return count


def _receive(received: dict[Any, dict[int, Tensor]], place: Place, gradient: Tensor) -> None:
    """Add a gradient to what a node has, in the shape and dtype that it wants."""
    node, number = place
    wanted = node._input_metadata[number]
    if gradient.shape != wanted.shape:
        gradient = gradient.sum_to_size(wanted.shape)
    if gradient.dtype != wanted.dtype:
        gradient = gradient.to(wanted.dtype)
    before = received[node].pop(number, None)
    if before is None:
        received[node][number] = gradient
    elif sys.getrefcount(before) == ALONE and torch._C._storage_Use_Count(before.untyped_storage()._cdata) == ALONE:
        received[node][number] = before.add_(gradient)  # in place, as the engine does where nobody else has it
    else:
        received[node][number] = before + gradient


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    if leaf.grad is None:
        leaf.grad = gradient
    else:
        leaf.grad += gradient
