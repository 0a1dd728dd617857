"""The command line: what a prompt has the shape of, how results are printed, and that bad input is one sentence."""

import pytest

from rtdmd_lightning import plan
from rtdmd_lightning.planning import tables
from rtdmd_lightning.planning.estimate import MemoryEstimate
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import tiny_backbone, write_config

NAMES = (tables.DDP, tables.UNCHECKPOINTED, tables.FSDP2, tables.COPIES)


def test_a_prompt_has_the_real_shapes(tiny_folder):
    real = tiny_backbone(tiny_folder)
    real.load()
    wanted, found = real.encode_prompts(["one", "two"]), real.blank_conditioning(2)
    assert found.embeds.shape == wanted.embeds.shape and found.embeds.dtype == wanted.embeds.dtype
    assert found.pooled.shape == wanted.pooled.shape


def test_a_batch_that_does_not_divide_is_refused(tiny_folder, tmp_path):
    with pytest.raises(UserError, match=r"batch_size 4 .* processes 3"):
        plan.plan(["--config", str(write_config(tmp_path, tiny_folder)), "--trainer.devices=3"])


def test_a_hub_id_of_unknown_shapes_is_refused(tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder))
    with pytest.raises(UserError, match="nothing is known of the shapes of 'someone/else'"):
        plan.plan(["--config", config, "--model.backbone.pretrained=someone/else"])


def test_a_missing_folder_is_refused(tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder))
    with pytest.raises(UserError, match="/nowhere"):
        plan.plan(["--config", config, "--model.backbone.pretrained=/nowhere"])


@pytest.mark.parametrize(
    ("extra", "wanted"), [([], "1 GPU(s)"), (["--markdown"], "| tiny/config | 1 |")], ids=["terminal", "markdown"]
)
def test_the_title_is_the_config_and_markdown_an_option_of_its_own(extra, wanted, monkeypatch, capsys):
    estimate = MemoryEstimate(*[2**20] * 8)
    asked = []
    monkeypatch.setattr(plan, "plan", lambda options: (asked.extend(options), (dict.fromkeys(NAMES, estimate), 1))[1])
    plan.main(["--config", "a/tiny/config.yaml", *extra])
    printed = capsys.readouterr().out
    assert asked == ["--config", "a/tiny/config.yaml"]
    assert wanted in printed and "tiny/config" in printed
    assert ("MiB on each" in printed) == (not extra)  # less than a GiB
