"""`make demo` on a tiny pipeline: what it shows, what it goes on with, and what it trains anew."""

from collections import Counter
from contextlib import suppress

import pytest
import torch
from torchvision.io import read_image

from rtdmd_lightning.demo import demo
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import write_config
from tests.support.tiny_rtdmd import write_rtdmd_config

pytestmark = pytest.mark.slow

PROMPTS, UPDATES = 12, 2
ROWS = ["teacher, 50 steps, CFG 3", "teacher, 4 steps, no CFG", "cold start, 4 steps, no CFG", "RTDMD, 4 steps, no CFG"]


class Interrupted(Exception):
    pass


@pytest.fixture
def run(tiny_folder, tmp_path, monkeypatch, capsys):
    """Call the demo; returns the generator updates made by stage, and what was printed."""
    one_move = {"ema": {"moves": 1}}
    configs = (
        write_config(tmp_path / "a", tiny_folder, **one_move),
        write_rtdmd_config(tmp_path / "b", tiny_folder, tmp_path, **one_move),
    )
    move_average = FewStepModule.move_average

    def _run(*, options=(), rtdmd_options=(), interrupt_at=None):
        updates: Counter = Counter()

        def counting(module, moves):
            if not moves:
                return  # before the generator's update; the configs have one move, after it
            updates[type(module).__name__] += 1
            if interrupt_at == (type(module).__name__, module.global_step):
                raise Interrupted
            move_average(module, moves)

        monkeypatch.setattr(FewStepModule, "move_average", counting)
        with suppress(Interrupted):
            demo(*configs, per_tag=PROMPTS // 6, options=list(options), rtdmd_options=list(rtdmd_options))
        return dict(updates), capsys.readouterr().out

    return _run


def scores(printed):
    """The table's rows without their seconds."""
    return [line.rpartition("│")[0].rpartition("│")[0] for line in printed.splitlines() if " steps, " in line]


def test_it_shows_what_it_trained_and_trains_only_what_has_changed(run, tmp_path):
    picture = tmp_path / "b/runs/run/demo.png"
    updates, printed = run()
    assert updates == {"ACDMDModule": UPDATES, "RTDMDModule": UPDATES}
    assert len(scores(printed)) == len(ROWS)
    assert all(name in row for name, row in zip(ROWS, scores(printed), strict=True))
    assert str(picture) in printed.replace("\n", "")
    # At 120 pixels an inch, `save_side_by_side`'s size for four rows of twelve prompts: 13.5 x 4.7 inches.
    drawn = read_image(str(picture)).float()
    assert drawn.shape[1:] == (564, 1620)

    picture.unlink()
    updates, again = run()
    assert updates == {} and scores(again) == scores(printed)
    # Prompts embedded in batches of another size differ in the last bit, which may tip a pixel to the next of 256 levels.
    torch.testing.assert_close(read_image(str(picture)).float(), drawn, rtol=0, atol=2)

    kl = ["--model.policy.kl_weight=0.1"]
    updates, printed = run(rtdmd_options=kl)
    assert updates == {"RTDMDModule": UPDATES} and printed.count("trained anew") == 1
    updates, printed = run(
        options=["--model.fake_update_ratio=1"], rtdmd_options=kl
    )  # stage 2 stands on the cold start
    assert updates == {"ACDMDModule": UPDATES, "RTDMDModule": UPDATES} and printed.count("trained anew") == 2


def test_interrupted_it_goes_on_where_it_stopped(run):
    assert run(interrupt_at=("ACDMDModule", 2))[0] == {"ACDMDModule": 2}
    assert run(interrupt_at=("RTDMDModule", 1))[0] == {"ACDMDModule": 1, "RTDMDModule": 1}
    updates, printed = run()
    assert updates == {"RTDMDModule": UPDATES} and "was stopped before its first checkpoint" in printed


def test_a_run_that_is_not_the_demos_is_left_alone(run, tmp_path):
    folder = tmp_path / "a/runs/run"
    folder.mkdir(parents=True)
    (folder / "eval.jsonl").write_text("{}\n")
    for _ in range(2):
        with pytest.raises(UserError, match=r"runs/run holds a run already: .*run_dir, or delete that folder"):
            run()
    assert (folder / "eval.jsonl").read_text() == "{}\n"
