"""The tables of an evaluation, in a terminal."""

from collections.abc import Iterator

from rich import box
from rich.markup import escape
from rich.table import Table as Drawn
from rich.text import Text

from rtdmd_lightning.evaluation.results import Results
from rtdmd_lightning.evaluation.tables import Cell, Table, comparison_tables, tag_tables

COLOURS = {"": "", "higher": "green", "lower": "red"}


def to_terminal(results: Results) -> Iterator[Drawn | Text]:
    """All sets with all their tables; differences whose interval excludes zero are bold, green above it and red below."""
    for name, result in results.sets.items():
        yield Text(f"\n{name}: {result.size} ({result.source})", style="bold")
        for table in comparison_tables(results, name) + tag_tables(results, name):
            yield draw(table)
            yield from (Text(note, style="dim") for note in table.notes)


def draw(table: Table) -> Drawn:
    """The names of rows and columns are the user's own: brackets in them are no markup."""
    drawn = Drawn(title=escape(table.title), title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    drawn.add_column("", overflow="fold")
    for column in table.columns:
        drawn.add_column(escape(column), justify="right", overflow="fold")
    for row in table.rows:
        drawn.add_row(Text(row.name), *map(_coloured, row.cells))
    return drawn


def _coloured(cell: Cell) -> Text:
    return Text(cell.text, style=f"bold {COLOURS[cell.verdict]}" if cell.verdict else "")
