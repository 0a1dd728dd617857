"""What a loss is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One term: a scalar, the mean over the samples that it was given, and its weight in the loss."""

    value: Tensor
    weight: float = 1.0


Terms = dict[str, Term]
"""By the name that it is logged under."""


def detached(terms: Terms) -> Terms:
    """The same numbers without gradient."""
    return {name: Term(term.value.detach(), term.weight) for name, term in terms.items()}


def mean(parts: Sequence[Terms]) -> Terms:
    """The terms of several micro-batches of equally many samples as those of all of them."""
    return {
        name: Term(torch.stack([part[name].value for part in parts]).mean(), term.weight)
        for name, term in parts[0].items()
    }


def total(terms: Mapping[str, Term]) -> Tensor:
    """The loss: `Σ weight·value`, a scalar with the gradients of all terms.

    Raises RuntimeError where there is no term.
    """
    return torch.stack([term.weight * term.value for term in terms.values()]).sum()
