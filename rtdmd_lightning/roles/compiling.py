"""Regional `torch.compile`: the blocks of a transformer are compiled, what is around them is not.

Blocks of a kind share their graphs, so a model of many blocks compiles as fast as one of few. Each role, batch size and grad
mode has graphs of its own: an adapter that is switched is a guard, not a graph break.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

Compile = Literal["blocks"]

GRAPHS_OF_A_ROLE = 32
"""At most, of one class of block: kinds of block x grad modes x batch sizes of training and evaluation."""


def compile_blocks(
    transformer: nn.Module,
    blocks: tuple[type[nn.Module], ...],
    roles: int,
    backend: str | Callable[..., Any] = "inductor",
) -> None:
    """Compile every block's forward pass, for static shapes. What is hooked to a block (FSDP2, checkpointing) stays outside.

    A graph break is an error, by `fullgraph`. So is a graph more than `roles` need: going on without compilation would be
    slow, and would change the numbers.
    """
    # Settings of the process; both may be set again.
    torch._dynamo.config.recompile_limit = GRAPHS_OF_A_ROLE * roles
    torch._dynamo.config.accumulated_recompile_limit = 8 * GRAPHS_OF_A_ROLE * roles
    for module in transformer.modules():
        if isinstance(module, blocks):
            module.forward = torch.compile(module.forward, fullgraph=True, dynamic=False, backend=backend)
