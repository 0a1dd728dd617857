"""Checks in processes of their own: whatever one does, the others run, and what was found is on the disk."""

import json
from pathlib import Path

import pytest
import torch

from rtdmd_lightning.benchmarking.conductor import Conductor
from rtdmd_lightning.benchmarking.report import Report, Row
from tests.support.checks import checks

pytestmark = pytest.mark.slow


def runs(process: int) -> bool:
    """One that has ended may still be listed, until somebody asks how."""
    status = Path(f"/proc/{process}/stat")
    return status.is_file() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_no_check_costs_another_one_anything(tmp_path, capsys):
    output = tmp_path / "report.json"
    report = Report(output, {"about": "this"})
    Conductor(report, torch.device("cpu"), small=True, seconds=300).play(checks())
    found = {(row.check, row.what): row for row in report.rows}

    assert found["last", "what the first found"].value == 2.0
    assert found["last", "its number: times as fast"].value == 1.0
    assert found["raises", "a part"].note.startswith("ZeroDivisionError")
    assert found["raises", "the part after it"].value == 1.0
    assert found["raises", "raises"].note.startswith("ValueError: no more")
    assert ("if it failed", "its number") in found and ("if it had failed", "its number") not in found
    assert found["dies", "before"].value == 1.0 and found["dies", "CRASHED"].value == "exit code -9"
    assert found["hangs", "ENDED"].good is False and found["long", "not begun"].note == "it wants 9000"
    assert not runs(int(found["hangs", "child"].value))

    written = json.loads(output.read_text())
    assert written["about"] == "this" and [Row(**row) for row in written["rows"]] == report.rows
    assert capsys.readouterr().out.count("\n") == len(report.rows)
    assert output.with_suffix(".log").read_text().count("to the log") == 3
