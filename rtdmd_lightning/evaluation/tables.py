"""The tables of an evaluation, as data, and in Markdown."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rtdmd_lightning.evaluation.published import NOTE
from rtdmd_lightning.evaluation.results import Results, SetResult
from rtdmd_lightning.evaluation.statistics import (
    CONFIDENCE,
    Difference,
    decimals,
    estimate,
    paired_difference,
    per_tag,
)


@dataclass(frozen=True)
class Cell:
    """A number as text; `verdict` says on which side of zero a whole confidence interval lies."""

    text: str
    verdict: Literal["", "higher", "lower"] = ""


@dataclass(frozen=True)
class Row:
    """A row's name, its cells, and the entry that it is about (another name: what the paper says of it)."""

    name: str
    cells: list[Cell]
    entry: str


@dataclass(frozen=True)
class Table:
    """A title, the columns' names, the rows, and sentences to stand below."""

    title: str
    columns: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


def score_table(results: Results, name: str) -> Table:
    """Mean ± standard error: a row an entry, a column a reward. What is published of an entry stands below it."""
    result = results.sets[name]
    digits, rows = score_decimals(result), []
    for entry, settings in results.entries.items():
        scores = result.prompt_scores(entry).items()
        rows.append(Row(entry, [Cell(f"{estimate(of_one):.{digits[reward]}f}") for reward, of_one in scores], entry))
        if entry in result.published:
            rows.append(Row(f"{settings['published']} (paper)", _published_cells(result, entry), entry))
    notes = [*_reward_note(result.reward_settings), *([NOTE] if result.published else [])]
    return Table("mean ± standard error", result.rewards, rows, notes)


def difference_table(results: Results, name: str) -> Table:
    """Paired differences to the baseline: a row for each other entry, a column a reward."""
    result = results.sets[name]
    baseline = result.prompt_scores(results.baseline)
    found = {
        entry: {reward: paired_difference(of_one, baseline[reward]) for reward, of_one in scores.items()}
        for entry, scores in ((entry, result.prompt_scores(entry)) for entry in results.challengers)
    }
    digits = {reward: decimals(of_entry[reward].error for of_entry in found.values()) for reward in result.rewards}
    rows = [
        Row(entry, [_difference_cell(of_reward[reward], digits[reward]) for reward in result.rewards], entry)
        for entry, of_reward in found.items()
    ]
    title = f"paired difference to “{results.baseline}” [{CONFIDENCE:.0%} confidence interval]"
    return Table(title, result.rewards, rows)


def score_decimals(result: SetResult) -> dict[str, int]:
    """By reward: how many decimals its means deserve, the same for all entries."""
    scores = [result.prompt_scores(entry) for entry in result.scores]
    return {reward: decimals(estimate(of_entry[reward]).error for of_entry in scores) for reward in result.rewards}


def tag_tables(results: Results, name: str) -> list[Table]:
    """For prompts with tags, a table a reward: the mean of every tag and, as `overall`, the mean of those."""
    result = results.sets[name]
    tags = result.tags
    return [] if tags is None else [_tag_table(result, reward, tags, n) for reward, n in score_decimals(result).items()]


def comparison_tables(results: Results, name: str) -> list[Table]:
    """Scores, and differences to the baseline where there is another entry to compare with it."""
    return [score_table(results, name), *([difference_table(results, name)] if results.challengers else [])]


def to_markdown(results: Results) -> str:
    """All sets with all their tables; differences whose interval excludes zero are bold."""
    parts = []
    for name, result in results.sets.items():
        parts.append(f"## {name}: {result.size} ({result.source})\n")
        tables = comparison_tables(results, name) + tag_tables(results, name)
        parts += [_table_to_markdown(table) for table in tables]
    return "\n".join(parts)


def _tag_table(result: SetResult, reward: str, tags: list[str], digits: int) -> Table:
    means = {entry: per_tag(result.prompt_scores(entry)[reward], tags) for entry in result.scores}
    columns = list(next(iter(means.values())))
    rows = [
        Row(entry, [Cell(f"{value:.{digits}f}") for value in of_tags.values()], entry)
        for entry, of_tags in means.items()
    ]
    return Table(f"{reward} by tag", columns, rows)


def _published_cells(result: SetResult, entry: str) -> list[Cell]:
    """Without standard errors, which are not published; empty where a reward has no figure."""
    published = result.published[entry]
    return [Cell(f"{published[reward]:.4f}" if reward in published else "") for reward in result.rewards]


def _reward_note(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The options that the rewards were made with, but for those that are null; no sentence where there are none."""
    parts = []
    for reward, made_of in settings.items():
        options = [f"{key}={value}" for key, value in made_of.get("init_args", {}).items() if value is not None]
        parts += [f"{reward} ({', '.join(options)})"] if options else []
    return [f"scored with {', '.join(parts)}"] if parts else []


def _difference_cell(found: Difference, digits: int) -> Cell:
    if math.isnan(found.low):
        return Cell(f"{found.mean:+.{digits}f}")
    verdict: Literal["", "higher", "lower"] = "higher" if found.low > 0 else "lower" if found.high < 0 else ""
    return Cell(f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]", verdict)


def _table_to_markdown(table: Table) -> str:
    rows = [
        [_escape(row.name), *(f"**{cell.text}**" if cell.verdict else cell.text for cell in row.cells)]
        for row in table.rows
    ]
    head = [["", *map(_escape, table.columns)], ["---", *("---:" for _ in table.columns)]]
    lines = ["| " + " | ".join(row) + " |" for row in head + rows]
    return "\n\n".join([table.title, "\n".join(lines), *table.notes]) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
