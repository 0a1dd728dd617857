"""`bench --gpu` from beginning to end with tiny shapes on the CPU, and what it refuses."""

import json

import pytest
import torch

from rtdmd_lightning import bench
from rtdmd_lightning.benchmarking.checks import CHECKS, DIAGNOSES
from rtdmd_lightning.benchmarking.diagnosis import updates_by_hand
from rtdmd_lightning.benchmarking.probe import Probe
from rtdmd_lightning.benchmarking.profile import covered
from rtdmd_lightning.benchmarking.report import Row
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import REPOSITORY


@pytest.mark.slow
def test_all_checks_finish_on_a_cpu_with_tiny_shapes(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    output = tmp_path / "out/bench.json"
    # Compiling takes minutes here, and predictions are of the real shapes.
    names = {
        check.name for check in CHECKS if check.if_failed is None and check.on_device and "compile" not in check.name
    }
    chosen = f"--only={','.join(names)}"
    bench.main(["--gpu", "--small=true", "--device=cpu", "--minutes=20", chosen, f"--output={output}"])
    rows = [Row(**row) for row in json.loads(output.read_text())["rows"]]
    assert [row for row in rows if row.good is False] == []
    assert {row.check for row in rows} == names
    found = {(row.check, row.what): row.value for row in rows}
    assert found["sd35m", "fake-score update"] > 0 and found["stage2", "generator_update"] > 0
    assert found["stage2", "epoch 0: ratio deviation"] == 0
    assert (
        len([row for row in rows if row.check == "tiny"]) == 6
        and len([row for row in rows if row.check == "strategies"]) == 3
    )
    assert output.with_suffix(".md").read_text().count("\n") == 2 + len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIAGNOSES)
def test_a_diagnosis_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    rows: list[Row] = []
    updates_by_hand(
        Probe("flux1", torch.device("cpu"), True, tmp_path / "out.json", 600, rows.append), **DIAGNOSES[name]
    )
    assert [(row.what, row.value) for row in rows] == [
        (phase, "passes") for phase in ("rollout", "fake-score step", "generator step")
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "no accelerator"),
        (["--small=true", "--only=machine,sd15"], "sd15"),
        (["--small=true", "--minutes=0.1"], "--minutes 0.1"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(options, told, tmp_path):
    if torch.accelerator.is_available() and not options:
        pytest.skip("this machine has an accelerator")
    with pytest.raises(UserError, match=told):
        bench.main(["--gpu", f"--output={tmp_path / 'bench.json'}", *options])
    assert list(tmp_path.iterdir()) == []


def test_busy_time_counts_what_overlaps_once():
    assert covered([(5, 7), (0, 2), (1, 4), (6, 9), (6, 7)]) == 4 + 4
