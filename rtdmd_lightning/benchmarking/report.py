"""What checks have found: a line each on the terminal as it comes, and all of it in a JSON file that is always whole."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MARKS = {True: "ok", False: "LOOK", None: ""}


@dataclass(frozen=True)
class Row:
    """One finding.

    Args:
        check: the check that found it.
        what: what was measured.
        value: a number in `unit`, or a word.
        expected: what it should be, in words.
        good: whether it is; None where there is nothing to judge.
        note: what else is to be said.
    """

    check: str
    what: str
    value: float | str
    unit: str = ""
    expected: str = ""
    good: bool | None = None
    note: str = ""

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, float):
            value = f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.4g}"
        expected = f"[{self.expected}]" if self.expected else ""
        said = " ".join(part for part in (f"{self.what}: {value}", self.unit, expected, self.note) if part)
        return f"{self.check:26} {MARKS[self.good]:4} {said}"


@dataclass
class Report:
    """Rows as they come. After every row the file holds all of them: an interruption loses nothing.

    Args:
        output: the JSON file.
        about: what is written beside the rows.
    """

    output: Path
    about: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"{time.monotonic() - self.started:4.0f} s {row}", flush=True)
        whole = {**self.about, "rows": [asdict(row) for row in self.rows]}
        self.output.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.output.with_suffix(".tmp")
        temporary.write_text(json.dumps(whole, indent=1) + "\n")
        temporary.replace(self.output)

    def number(self, check: str, what: str) -> float | None:
        """A number that was found, or None."""
        return next(
            (
                row.value
                for row in self.rows
                if (row.check, row.what) == (check, what) and not isinstance(row.value, str)
            ),
            None,
        )

    def failed(self, check: str) -> bool:
        """Whether a part of a check raised, crashed or was ended."""
        return any(row.check == check and row.good is False and isinstance(row.value, str) for row in self.rows)

    def table(self) -> str:
        """All rows in Markdown."""
        cells = [
            (
                row.check,
                row.what,
                str(Row("", "", row.value)).split(": ", 1)[1],
                row.unit,
                row.expected,
                MARKS[row.good],
                row.note,
            )
            for row in self.rows
        ]
        lines = ["| check | what | value | unit | expected | | note |", "|---|---|---:|---|---|---|---|"]
        return (
            "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)])
            + "\n"
        )
