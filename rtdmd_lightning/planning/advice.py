"""How a run fits one card, in words: its bytes, the switches, and the command to paste."""

import shlex
from collections.abc import Mapping, Sequence

from rich.table import Table

from rtdmd_lightning.planning.card import Advice
from rtdmd_lightning.planning.estimate import GIB, HEADROOM, MemoryEstimate
from rtdmd_lightning.planning.switches import Setup, brief_of, options_of
from rtdmd_lightning.planning.tables import PARTS

ONE_CARD = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")


def budget_of(card: float) -> int:
    """Bytes of a card of so many GB that a plan may use."""
    return int((1 - HEADROOM) * card * GIB)


def parts_table(title: str, card: float, plain: MemoryEstimate, advice: Advice) -> Table:
    """GiB of each part at the worst moment: of the config on one card, and with the switches."""
    caption = f"GiB at the moment that needs most; {HEADROOM:.0%} of the card stay free."
    table = Table(title=f"{title} on one card of {card:g} GB", caption=caption)
    columns = {"": None, "as it is": plain} | ({"with the switches": advice.estimate} if advice.switches else {})
    for name in columns:
        table.add_column(name, justify="right" if name else "left")
    estimates = [estimate for estimate in columns.values() if estimate is not None]
    for part, heading in PARTS.items():
        table.add_row(heading, *(f"{vars(estimate)[part] / GIB:.2f}" for estimate in estimates))
    table.add_section()
    table.add_row("sum", *(f"{estimate.total / GIB:.2f}" for estimate in estimates))
    table.add_row("fits", *("yes" if estimate.total <= budget_of(card) else "no" for estimate in estimates))
    return table


def command(arguments: Sequence[str], advice: Advice, evaluates: bool) -> str:
    """To paste: the run that was planned, on one card with the switches."""
    options = [*ONE_CARD, *options_of(advice.setup, advice.switches), *evaluation_options(advice.setup, evaluates)]
    return shlex.join(["rtdmd", "fit", *arguments, *options])


def evaluation_options(setup: Setup, evaluates: bool) -> list[str]:
    """An evaluation draws no more images at once than a pass has samples."""
    small = evaluates and setup.micro_batch is not None
    return [f"--callbacks.evaluation.batch_size={setup.micro_batch}"] if small else []


def prices(advice: Advice) -> list[str]:
    """What each switch does to the time of an update."""
    return [f"{switch.name}: {switch.slowdown}" for switch in advice.switches]


def cards_table(title: str, advices: Mapping[float, Advice]) -> str:
    """Markdown's header and row of a run: GiB on each card, and what makes it fit."""
    header = ["GiB", *(f"{card:g} GB" for card in advices)]
    row = [title, *(_cell(advice) for advice in advices.values())]
    lines = (" | ".join(header), " | ".join(["---"] * len(header)), " | ".join(row))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(advice: Advice) -> str:
    size = f"{advice.estimate.total / GIB:.1f}"
    if not advice.fits:
        return f"no: {size}"
    return ": ".join([size, *filter(None, [", ".join(brief_of(advice.setup, advice.switches))])])


def too_large(title: str, card: float, advice: Advice) -> str:
    return (
        f"{title} does not fit a card of {card:g} GB, of which {HEADROOM:.0%} stay free: with all switches it needs "
        f"{advice.estimate.total / GIB:.1f} GiB; take a larger card, or shard the base over several (configs/parts/fsdp2.yaml)"
    )
