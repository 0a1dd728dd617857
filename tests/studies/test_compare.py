"""A study: its runs in order, what is kept, what goes on, what is refused; and one that really trains."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jsonargparse import ArgumentError

from rtdmd_lightning import fit
from rtdmd_lightning import study as comparing
from rtdmd_lightning.callbacks import RewardEvalCallback
from rtdmd_lightning.studies.children import Children
from rtdmd_lightning.studies.curves import SECONDS, STEP, read_curve
from rtdmd_lightning.studies.study import grid, load_study, write_json
from rtdmd_lightning.study import compare
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.files import slug
from rtdmd_lightning.utils.run_folder import run_folder
from tests.support.tiny import REPOSITORY, write_config

STUDIES = [
    path
    for path in sorted((REPOSITORY / "configs/compare").glob("*.yaml"))
    if "variants" in yaml.safe_load(path.read_text())
]


@pytest.fixture
def write_study(tmp_path):
    """Write a study of two variants, three runs; keywords replace fields."""

    def _write(**fields) -> Path:
        (tmp_path / "run.yaml").write_text("seed_everything: 0")
        study = {
            "config": str(tmp_path / "run.yaml"),
            "max_steps": 4,
            "seeds": [0, 1],
            "metrics": ["eval/shapes"],
            "runs": str(tmp_path / "runs"),
            "results": str(tmp_path / "results"),
            "variants": [{"name": "Ours"}, {"name": "no X", "options": ["--model.x=false"], "seeds": [1]}],
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study | fields))
        return path

    return _write


@pytest.fixture
def processes(monkeypatch):
    """Instead of a training: note command and threads, write a curve; `status` is what the next processes end with.

    Each waits until `together` of them run.
    """
    seen = SimpleNamespace(commands=[], threads=[], status=0, together=threading.Barrier(1))

    def run(self, command, *, stdout, stderr, env):
        seen.commands.append(command)
        seen.threads.append(env.get("OMP_NUM_THREADS"))
        seen.together.wait(timeout=120)
        (folder,) = (Path(argument.partition("=")[2]) for argument in command if argument.startswith("--run_dir="))
        stdout.write("loading\nerror: the reason\n")
        rows = [{STEP: step, SECONDS: 2.0 * step, "eval/shapes": 0.1 * step} for step in (2, 4)]
        (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return seen.status

    monkeypatch.setattr(Children, "run", run)
    return seen


def test_the_grid_has_every_variant_once_before_any_twice(write_study, tmp_path):
    runs = grid(load_study(write_study()))
    assert [(run.variant, run.seed) for run in runs] == [("Ours", 0), ("no X", 1), ("Ours", 1)]
    assert runs[1].folder == tmp_path / "runs/no_x/seed_1"
    assert runs[1].arguments == [
        "--config",
        str(tmp_path / "run.yaml"),
        "--model.x=false",
        "--trainer.max_steps=4",
        "--seed_everything=1",
        f"--run_dir={tmp_path}/runs/no_x/seed_1",
    ]


def test_a_variant_may_have_a_config_of_its_own(write_study):
    variants = [{"name": "a"}, {"name": "b", "config": "configs/other.yaml"}]
    study = load_study(write_study(variants=variants, seeds=[0]))
    assert [run.config for run in grid(study)] == [study.config, "configs/other.yaml"]


@pytest.mark.parametrize(
    ("fields", "error", "told"),
    [
        ({"variants": []}, UserError, "variants whose names differ"),
        ({"variants": [{"name": "A b"}, {"name": "a-B"}]}, UserError, "variants whose names differ"),
        ({"seeds": [1, 1]}, UserError, "'Ours' wants seeds that differ"),
        ({"seeds": []}, UserError, "'Ours' wants seeds"),
        ({"metrics": []}, UserError, "metrics"),
        ({"parallel": 0}, UserError, "at least 1, not 0"),
        ({"max_step": 3}, ArgumentError, "max_step"),
        ({"variants": [{"name": "a", "option": []}]}, ArgumentError, "option"),
    ],
)
def test_a_study_that_cannot_be_is_refused(write_study, fields, error, told):
    with pytest.raises(error, match=told):
        load_study(write_study(**fields))


def test_finished_runs_are_kept_and_the_results_written_again(write_study, processes, tmp_path, capsys):
    study = write_study()
    compare(study)
    assert len(processes.commands) == 3
    results = json.loads((tmp_path / "results/compare_study.json").read_text())
    assert set(results["curves"]) == {"Ours", "no X"} and set(results["curves"]["Ours"]) == {"0", "1"}
    assert results["summary"]["budgets"] == {STEP: 4, SECONDS: 8.0}
    table = (tmp_path / "results/compare_study.md").read_text()
    assert table in capsys.readouterr().out and "| no X | 1 |" in table
    (tmp_path / "results/compare_study.png").unlink()
    compare(study)
    assert len(processes.commands) == 3 and (tmp_path / "results/compare_study.png").is_file()


@pytest.mark.parametrize("status", [7, 143])
def test_a_run_that_fails_or_is_stopped_ends_the_study_and_goes_on_from_its_checkpoint(
    status, write_study, processes, tmp_path
):
    study, folder = write_study(), tmp_path / "runs/ours/seed_0"
    processes.status = status
    with pytest.raises(
        UserError, match=rf"Ours, seed 0, failed with status {status} .*output\.log.*: error: the reason"
    ):
        compare(study)
    assert not (tmp_path / "results").exists()
    assert len(processes.commands) == 1 and not any("ckpt_path" in word for word in processes.commands[0])
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.ckpt").touch()
    processes.status = 0
    compare(study)
    assert len(processes.commands) == 4
    assert processes.commands[1] == [*processes.commands[0], f"--ckpt_path={folder / 'checkpoints/last.ckpt'}"]


def test_a_run_stopped_before_its_first_checkpoint_begins_again_among_nothing_of_the_old(
    write_study, processes, tmp_path
):
    study, folder = write_study(), tmp_path / "runs/ours/seed_0"
    processes.status = 7
    with pytest.raises(UserError):
        compare(study)
    (folder / "images").mkdir()
    processes.status = 0
    compare(study)
    assert processes.commands[1] == processes.commands[0] and not (folder / "images").exists()
    assert (folder / "output.log").read_text().count("the reason") == 1


def test_runs_at_the_same_time_share_the_cores(write_study, processes, monkeypatch):
    monkeypatch.setattr(comparing.os, "cpu_count", lambda: 12)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    processes.together = threading.Barrier(3)  # breaks unless all three are there at once
    compare(write_study(parallel=3))
    assert processes.threads == ["4", "4", "4"]


def test_after_a_failure_no_other_run_is_begun(write_study, processes):
    processes.status, processes.together = 7, threading.Barrier(2)
    with pytest.raises(UserError, match=r"seed ., failed with status 7"):
        compare(write_study(parallel=2, seeds=[0, 1, 2, 3]))
    assert len(processes.commands) == 2


@pytest.mark.parametrize("status", [0, 1])
def test_runs_of_another_recipe_are_never_mixed_in(write_study, processes, tmp_path, status):
    """Neither a finished one nor one to be resumed: other options, another budget, or an edited config."""
    study = write_study()
    processes.status = status
    if status:
        with pytest.raises(UserError):
            compare(study)
    else:
        compare(study)
    before = len(processes.commands)
    for change in (
        lambda: write_study(max_steps=8),
        lambda: write_study(variants=[{"name": "Ours", "options": ["--model.y=1"]}]),
        lambda: (write_study(), (tmp_path / "run.yaml").write_text("seed_everything: 0\nmodel: {batch_size: 3}")),
    ):
        change()
        with pytest.raises(UserError, match=r"runs/ours/seed_0 holds a run with another config or other options"):
            compare(study)
    assert len(processes.commands) == before


def test_a_metric_that_the_runs_do_not_log_is_named_with_those_they_do(write_study, processes):
    with pytest.raises(UserError, match=r"has no 'eval/clip'; it has step, training_seconds, eval/shapes"):
        compare(write_study(metrics=["eval/clip"]))


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_builds_its_runs_and_logs_what_it_shows(path, monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    study = load_study(path)
    first_seeds = {run.variant: run for run in reversed(grid(study))}
    configurations = set()
    for run in first_seeds.values():
        cli = fit.parse(run.arguments)
        (evaluation,) = (c for c in cli.trainer.callbacks if isinstance(c, RewardEvalCallback))
        assert set(study.metrics) <= set(evaluation.metric_names())
        assert study.max_steps % evaluation.every_n_updates == 0
        assert cli.trainer.max_steps == study.max_steps and run_folder(cli.trainer) == run.folder
        configurations.add(str(cli.config["model"]))
    assert len(configurations) == len(study.variants)  # no two rows are the same experiment


def test_the_cold_start_study_compares_ac_dmd_with_dmd2_over_three_seeds():
    study = load_study(REPOSITORY / "configs/compare/cold_start.yaml")
    by_name = {variant.name: variant for variant in study.variants}
    assert study.variants[0].name == "AC-DMD" and not by_name["AC-DMD"].options
    assert {"--model.sub_interval=false", "--model.consistency.weight=0"} == set(by_name["DMD2"].options)
    assert all(len(study.seeds_of(by_name[name])) == 3 for name in ("AC-DMD", "DMD2"))


def test_folder_names_hold_plain_letters():
    assert slug("Rao-Blackwellised target, η = 0") == "rao_blackwellised_target_0"


@pytest.mark.slow
def test_a_study_that_trains_goes_on_after_an_interruption(tiny_folder, tmp_path, write_study, monkeypatch):
    """The real processes: one run of two updates, of which the first was made before the interruption."""
    config = write_config(tmp_path / "tiny", tiny_folder)
    study = write_study(config=str(config), max_steps=2, seeds=[3], variants=[{"name": "Ours"}])
    (run,) = grid(load_study(study))
    run.folder.mkdir(parents=True)
    write_json(run.folder / "run.json", {"recipe": run.recipe, "finished": False})
    fit.main([*run.arguments, "--trainer.max_steps=1"])
    before = read_curve(run.folder / "eval.jsonl")
    assert [row[STEP] for row in before] == [1] and not run.finished()

    finished = subprocess.run(
        [sys.executable, "-m", "rtdmd_lightning.study", "--study", str(study)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "| Ours | 1 |" in finished.stdout
    assert "Restored all states from the checkpoint" in (run.folder / "output.log").read_text()
    after = run.curve(["eval/shapes"])
    assert [row[STEP] for row in after] == [1, 2] and after[0] == before[0]
    assert after[1][SECONDS] > before[0][SECONDS]  # the seconds before the interruption count
    monkeypatch.setattr(Children, "run", lambda *_, **__: pytest.fail("a finished run was started again"))
    compare(study)


def test_a_torn_last_row_is_left_out_and_a_curve_of_nothing_else_is_refused(write_study, tmp_path):
    (run, *_) = grid(load_study(write_study()))
    run.folder.mkdir(parents=True)
    rows = run.folder / "eval.jsonl"
    rows.write_text('{"step": 1, "eval/shapes": 0.5}\n{"step": 2, "eval/sha')
    assert run.curve(["eval/shapes"]) == [{"step": 1, "eval/shapes": 0.5}]
    rows.write_text('{"step": 1')
    with pytest.raises(UserError, match=r"eval\.jsonl has no finished evaluation"):
        run.curve(["eval/shapes"])
