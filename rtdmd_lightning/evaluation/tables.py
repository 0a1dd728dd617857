"""The tables of an evaluation, as data, and in Markdown."""

import math
from dataclasses import dataclass
from typing import Literal

from rtdmd_lightning.evaluation.results import Results, SetResult
from rtdmd_lightning.evaluation.statistics import CONFIDENCE, estimate, paired_difference, per_tag


@dataclass(frozen=True)
class Cell:
    """A number as text; `verdict` says on which side of zero a whole confidence interval lies."""

    text: str
    verdict: Literal["", "higher", "lower"] = ""


@dataclass(frozen=True)
class Table:
    """A title, the columns' names, and for each row's name its cells."""

    title: str
    columns: list[str]
    rows: dict[str, list[Cell]]


def score_table(results: Results, name: str) -> Table:
    """Mean ± standard error: a row an entry, a column a reward."""
    scores = results.sets[name].scores
    rows = {entry: [_estimate_cell(values) for values in scores[entry].values()] for entry in results.entries}
    return Table("mean ± standard error", results.sets[name].rewards, rows)


def difference_table(results: Results, name: str) -> Table:
    """Paired differences to the baseline: a row for each other entry, a column a reward."""
    scores = results.sets[name].scores
    baseline = scores[results.baseline]
    rows = {
        entry: [_difference_cell(values, baseline[reward]) for reward, values in scores[entry].items()]
        for entry in results.challengers
    }
    title = f"paired difference to “{results.baseline}” [{CONFIDENCE:.0%} confidence interval]"
    return Table(title, results.sets[name].rewards, rows)


def tag_tables(results: Results, name: str) -> list[Table]:
    """For prompts with tags, a table a reward: the mean of every tag and, as `overall`, the mean of those."""
    result = results.sets[name]
    return [] if result.tags is None else [_tag_table(result, reward, result.tags) for reward in result.rewards]


def comparison_tables(results: Results, name: str) -> list[Table]:
    """Scores, and differences to the baseline where there is another entry to compare with it."""
    return [score_table(results, name), *([difference_table(results, name)] if results.challengers else [])]


def to_markdown(results: Results) -> str:
    """All sets with all their tables; differences whose interval excludes zero are bold."""
    parts = []
    for name, result in results.sets.items():
        parts.append(f"## {name}: {len(result.metadata)} prompts ({result.source})\n")
        tables = comparison_tables(results, name) + tag_tables(results, name)
        parts += [_table_to_markdown(table) for table in tables]
    return "\n".join(parts)


def _tag_table(result: SetResult, reward: str, tags: list[str]) -> Table:
    means = {entry: per_tag(scores[reward], tags) for entry, scores in result.scores.items()}
    columns = list(next(iter(means.values())))
    rows = {entry: [Cell(f"{value:.4f}") for value in by_tag.values()] for entry, by_tag in means.items()}
    return Table(f"{reward} by tag", columns, rows)


def _estimate_cell(scores: list[float]) -> Cell:
    found = estimate(scores)
    return Cell(f"{found.mean:.4f}" if math.isnan(found.error) else f"{found.mean:.4f} ± {found.error:.4f}")


def _difference_cell(scores: list[float], baseline: list[float]) -> Cell:
    found = paired_difference(scores, baseline)
    if math.isnan(found.low):
        return Cell(f"{found.mean:+.4f}")
    verdict: Literal["", "higher", "lower"] = "higher" if found.low > 0 else "lower" if found.high < 0 else ""
    return Cell(f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]", verdict)


def _table_to_markdown(table: Table) -> str:
    rows = [
        [_escape(name), *(f"**{cell.text}**" if cell.verdict else cell.text for cell in cells)]
        for name, cells in table.rows.items()
    ]
    head = [["", *map(_escape, table.columns)], ["---", *("---:" for _ in table.columns)]]
    lines = ["| " + " | ".join(row) + " |" for row in head + rows]
    return f"{table.title}\n\n" + "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
