"""What an adapter file is, printed: format, the models that it fits, rank and alpha, and its numbers by kind of layer."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from rtdmd_lightning.roles.adapter import Adapter
from rtdmd_lightning.roles.known_models import Match, match_base, match_published
from rtdmd_lightning.roles.measures import LayerKind, by_kind, not_finite, told_by_a
from rtdmd_lightning.roles.reading import AdapterFile


def report(file: AdapterFile, base: str | None, console: Console) -> bool:
    """Print all that is known of one adapter. Returns whether it fits the base, or without one any published model.

    NaN and infinite values are told; they are no error here. Raises UserError for a base that cannot be read.
    """
    adapter = file.adapter
    state = adapter.state_dict(file.form.key("{path}", "{half}"))
    matches = match_published(adapter) if base is None else [match_base(adapter, base)]
    models = _models(matches, base)
    parameters = sum(matrix.numel() for matrix in state.values())
    alpha = _distinct(f"{update.alpha:g}" for update in adapter.layers.values())
    facts = [
        ("file", adapter.source),
        ("format", file.format),
        ("model", models[0]),
        *(("or", model) for model in models[1:]),
        ("keys", f"{len(state)}, such as {next(iter(state))}"),
        ("parameters", f"{parameters:,}, {_distinct(str(matrix.dtype) for matrix in state.values())}"),
        ("rank", _distinct(str(update.rank) for update in adapter.layers.values())),
        ("alpha", f"{alpha}, {_source_of_alpha(file)}"),
        ("values", _finiteness(state)),
    ]
    for name, fact in facts:
        console.print(f"{name:12}{fact}", markup=False, highlight=False, soft_wrap=True)
    console.print(_table(adapter))
    console.print(f"{told_by_a(adapter)}\n", markup=False, highlight=False, soft_wrap=True)
    return any(match.fits for match in matches)


def _models(matches: list[Match], base: str | None) -> list[str]:
    """A line for each model that fits, or one that says why none does."""
    if fitting := [str(match) for match in matches if match.fits]:
        return fitting
    if base is not None:
        return [f"the base does not fit, {matches[0]}"]
    nearest = f"the nearest is {matches[0]}" if matches[0].fitting else "none has layers of these names and shapes"
    return [f"no published model matches; {nearest}; --base BASE compares with another one"]


def _source_of_alpha(file: AdapterFile) -> str:
    if file.alpha_from is None:
        return f"assumed ({file.alpha_assumed}): the file does not say it"
    return f"known from {file.alpha_from}"


def _finiteness(state: Mapping[str, Tensor]) -> str:
    bad = not_finite(state)
    if not bad:
        return "all finite"
    return f"{sum(bad.values()):,} are NaN or infinite, in {len(bad)} of {len(state)} keys, the first {next(iter(bad))}"


def _table(adapter: Adapter) -> Table:
    kinds = by_kind(adapter)
    table = Table(caption="standard deviation of A and Frobenius norm of alpha/rank * B A, means over layers")
    for column in ("kind of layer", "layers", "out", "in", "std of A", "norm of BA"):
        table.add_column(column, justify="left" if column == "kind of layer" else "right", no_wrap=True)
    for kind, summary in kinds.items():
        table.add_row(escape(kind), *_cells(summary))
    return table


def _cells(kind: LayerKind) -> list[str]:
    outs, ins = zip(*kind.shapes, strict=True)
    return [str(kind.layers), _range(outs), _range(ins), f"{kind.std:.4g}", f"{kind.norm:.4g}"]


def _range(numbers: tuple[int, ...]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _distinct(values: Iterable[str]) -> str:
    """Each value once, in the order of their first appearance."""
    return ", ".join(dict.fromkeys(values))
