"""Bytes of one GPU for a run and for what it is compared with, from a trace."""

from dataclasses import dataclass
from typing import NamedTuple

GIB = 2**30
GPUS = (24, 48, 80)
HEADROOM = 0.1
"""Of a GPU's memory, left to what is not counted: the context, workspaces of kernels, what the allocator cannot use."""

COPIES = 4
"""A naive set-up's full transformers: generator, fake score, teacher, EMA."""

MOMENTS = 2
"""AdamW's, of every trained number."""


class Base(NamedTuple):
    """A frozen transformer's bytes: of all of it, of the largest of its sharded blocks, of what is in no block.

    weights, linear: those of the blocks' linear layers, which may be kept in few bits: how many, and their bytes.
    widest: how many the largest of those layers has.
    """

    total: int
    largest_block: int
    outside: int
    weights: int = 0
    linear: int = 0
    widest: int = 0


class Trace(NamedTuple):
    """Bytes of one process's parts, and of what comes and goes in each phase beyond them.

    bases: one frozen transformer, or the teacher's and the generator's own; where whole transformers train, that of every role.
    trained: what an optimizer trains: the adapters of generator and fake score, or two of the bases.
    adapters: all of them, also the EMA's and, in stage 2, the cold start's; none where whole transformers train.
    gradients: of one role, the only one that has any at a time.
    rewards, differentiable: networks of the rewards, by name; of those of them that are back-propagated.
    checkpointed, full: by phase, the most beyond what stays, with gradient checkpointing and without; gradients included.
    embeddings: of prompts, those that are kept on the device for later.
    """

    bases: tuple[Base, ...]
    trained: int
    adapters: int
    gradients: int
    vae: int
    text_encoders: int
    rewards: dict[str, int]
    differentiable: dict[str, int]
    checkpointed: dict[str, int]
    full: dict[str, int]
    embeddings: int = 0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one GPU, by part; `activations` are what comes and goes beyond the gradients, at the worst moment."""

    base: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    vae: int
    text_encoders: int
    rewards: int
    embeddings: int = 0

    @property
    def total(self) -> int:
        """With the text encoders on the GPU."""
        return sum(vars(self).values())

    @property
    def with_cached_prompts(self) -> int:
        """Where all prompts were encoded before and no text encoder is loaded."""
        return self.total - self.text_encoders

    @staticmethod
    def fits(size: int) -> str:
        """The smallest GPU that holds so many bytes with some headroom."""
        return next((f"{gpu} GB" for gpu in GPUS if size <= (1 - HEADROOM) * gpu * GIB), "none")


def one_base(trace: Trace, processes: int, *, checkpointing: bool) -> MemoryEstimate:
    """This project under DDP (or alone): every role an adapter of one base. DDP keeps buckets as large as what it trains."""
    buckets = trace.trained if processes > 1 else 0
    return MemoryEstimate(
        base=sum(base.total for base in trace.bases),
        adapters=trace.adapters,
        gradients=trace.gradients + buckets,
        optimizer=MOMENTS * trace.trained,
        activations=_activations(trace, checkpointing),
        vae=trace.vae,
        text_encoders=trace.text_encoders,
        rewards=sum(trace.rewards.values()),
        embeddings=trace.embeddings,
    )


def sharded(trace: Trace, processes: int, *, checkpointing: bool) -> MemoryEstimate:
    """This project under FSDP2: base, adapters, gradients and optimizer in equal parts, and the blocks gathered at a moment."""
    return MemoryEstimate(
        base=sum(_sharded(base, processes) for base in trace.bases),
        adapters=trace.adapters // processes,
        gradients=trace.gradients // processes,
        optimizer=MOMENTS * trace.trained // processes,
        activations=_activations(trace, checkpointing),
        vae=trace.vae,
        text_encoders=trace.text_encoders,
        rewards=sum(trace.rewards.values()),
        embeddings=trace.embeddings,
    )


def four_copies(trace: Trace, processes: int, *, checkpointing: bool) -> MemoryEstimate:
    """Generator, fake score, teacher and EMA as transformers of their own, with the same adapters: METHOD's public code."""
    ours = one_base(trace, processes, checkpointing=checkpointing)
    return MemoryEstimate(**vars(ours) | {"base": COPIES * trace.bases[0].total})


def _sharded(base: Base, processes: int) -> int:
    """What is in no block stays gathered after the first forward pass; of blocks there is one at work and the next on its way."""
    if processes == 1:
        return base.total
    return base.total // processes + base.outside + 2 * base.largest_block


def _activations(trace: Trace, checkpointing: bool) -> int:
    return max(0, max((trace.checkpointed if checkpointing else trace.full).values()) - trace.gradients)
