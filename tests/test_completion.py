"""`rtdmd completion`: what a shell completes, in a real bash."""

import subprocess
import sys

import pytest

from rtdmd_lightning.completion import completion
from tests.support.tiny import REPOSITORY

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_rtdmd; printf "%s\\n" "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "rtdmd"
    command = [sys.executable, "-m", "rtdmd_lightning.completion", "bash"]
    path.write_text(subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout)
    return path


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["fi"], ["fit"]),
        (["fit", "--model.bat"], ["--model.batch_size"]),
        (["fit", "--model.policy.clip"], ["--model.policy.clip_range"]),
        (["fit", "--model.backbone.use"], ["--model.backbone.use_t5"]),
        (["plan", "--trainer.max_s"], ["--trainer.max_steps"]),
        (["fit", "--float32_matmul_precision", "m"], ["medium"]),
        (["fit", "--config", "configs/baselines/f"], ["configs/baselines/flow_grpo_tiny_sd3.yaml"]),
        (["sample", "--schedule", "p"], ["pipeline"]),
        (["hub", "pu"], ["push", "pull"]),
        (["hub", "push", "--repo"], ["--repo_id"]),
        (["bench", "--g"], ["--gpu"]),
        (["plan", "--ca"], ["--card"]),
        (["evaluate", "--res"], ["--resolution"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes(script, typed, completed):
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", script, "rtdmd", *typed], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert (done.stdout.split(), done.stderr) == (completed, "")


def test_the_scripts_are_for_their_shells(script, capsys):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    completion("zsh")
    text = capsys.readouterr().out
    assert text.startswith("#compdef rtdmd") and "--model.batch_size[" in text
