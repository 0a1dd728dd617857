"""The command line: what is planned, how results are printed, and that bad input is one sentence."""

import pytest

from rtdmd_lightning import fit, plan
from rtdmd_lightning.planning import tables
from rtdmd_lightning.planning.estimate import Base, MemoryEstimate, Trace
from rtdmd_lightning.planning.phases import GENERATOR_STEP, ROLLOUT
from rtdmd_lightning.planning.trace import trace
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import REPOSITORY, write_config

NAMES = (tables.DDP, tables.UNCHECKPOINTED, tables.FSDP2, tables.COPIES)


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


@pytest.mark.parametrize(("kind", "names"), [("none", NAMES), ("int8", (NAMES[0], NAMES[1], NAMES[3]))])
def test_a_quantised_base_is_not_planned_under_fsdp2_which_refuses_it(kind, names, tiny_folder, tmp_path, monkeypatch):
    traced = Trace((Base(1000, 100, 40),), 80, 40, 40, 7, 500, {}, {}, {ROLLOUT: 60}, {ROLLOUT: 60})
    monkeypatch.setattr(plan, "trace", lambda *described: traced)
    config = write_config(tmp_path, tiny_folder)
    columns, processes = plan.plan([f"--config={config}", f"--model.backbone.quantization={kind}"])
    assert tuple(columns) == names
    tables.terminal("run", columns, processes)
    assert ("| - |" in tables.markdown("run", columns, processes)) == (kind != "none")


@pytest.mark.slow
def test_a_plan_leaves_the_embedding_cache_alone(tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder))
    cache = tmp_path / "cache"
    options = ["--model.backbone.text_encoders=false", f"--model.backbone.embedding_cache={cache}"]
    assert plan.plan(["--config", config, *options]) == plan.plan(["--config", config])
    assert not cache.exists()


@pytest.mark.slow
def test_activations_of_a_half_precision_run_are_smaller(tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder))
    half, single = (
        plan.plan(["--config", config, f"--trainer.precision={precision}"])[0]
        for precision in ("bf16-mixed", "32-true")
    )
    for name in (tables.DDP, tables.UNCHECKPOINTED):
        assert half[name].activations < single[name].activations


@pytest.mark.slow
def test_stage_2_without_the_matching_term_has_no_fake_score(monkeypatch):
    """Trained is the generator's adapter alone; frozen are its cold start and its average, of the same size."""
    monkeypatch.chdir(REPOSITORY)
    options = ["--model.final_step.matching_weight=0", "--model.cold_start_fake=/nowhere/fake_score.pt"]
    run = fit.parse(["--config=configs/rtdmd/tiny_sd3.yaml", *options, *plan.ANYWHERE])
    traced = trace(run.model, run.trainer)
    assert (traced.trained, traced.adapters) == (traced.gradients, 3 * traced.gradients)
    assert list(traced.checkpointed) == list(traced.full) == [ROLLOUT, GENERATOR_STEP]


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
