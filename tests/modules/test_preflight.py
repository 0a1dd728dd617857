"""What a run is refused for before it loads or writes anything."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rtdmd_lightning import fit
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.modules.origin import ORIGIN_KEY
from rtdmd_lightning.modules.training import SHARDED_KEY
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.run_folder import locked
from tests.support.runs import refused
from tests.support.tiny import REPOSITORY, STRATEGIES, write_config
from tests.support.tiny_rtdmd import save_cold_start, write_rtdmd_config


@pytest.fixture
def sentence_at_start(monkeypatch, capsys):
    """What a command line is refused with; the base model must not have been loaded by then."""

    def load(self):
        pytest.fail("the base model was loaded")

    def _sentence(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(PipelineBackbone, "load", load)
            return refused(capsys, *arguments)

    return _sentence


@pytest.fixture
def config(tiny_folder, tmp_path):
    return str(write_config(tmp_path, tiny_folder))


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--model.lora.rank=0"], "model.lora.rank must be at least 1, not 0"),
        (["--model.ema.every=0"], "model.ema.every must be at least 1, not 0"),
        (["--model.ema.moves=0"], "model.ema.moves must be at least 1, not 0"),
        (["--model.ema.decay=1"], "model.ema.decay must lie in [0, 1), not 1"),
        (["--model.lora.init_std=0"], "model.lora.init_std must be above 0, not 0"),
        (["--model.lora.init_std=-1"], "model.lora.init_std must be above 0, not -1"),
        (["--model.batch_size=0"], "model.batch_size must be at least 1, not 0"),
        (["--model.micro_batch_size=0"], "model.micro_batch_size must be at least 1, not 0"),
        (["--model.micro_batch_size=3"], "model.micro_batch_size 3 does not divide the 4 samples per process"),
        (["--model.fake_optimizer.learning_rate=-1"], "model.fake_optimizer: learning_rate must be a number from 0 up"),
        (["--model.consistency.moves=0"], "model.consistency.moves must be above 0, not 0"),
        (["--model.sampler.steps=[1000,990,500,250]"], "it cannot start at 0.99"),
        (["--model.backbone.resolution=30"], "resolution 30 cannot be represented"),
        (["--trainer.precision=bf16-true"], "give 32-true or bf16-mixed"),
        (["--trainer.precision=16-mixed"], "give 32-true or bf16-mixed"),
        (["--trainer.devices=2"], "--trainer.strategy=ddp_find_unused_parameters_true"),
        (["--trainer.devices=2", "--trainer.strategy=ddp"], "--trainer.strategy=ddp_find_unused_parameters_true"),
        (["--trainer.devices=2", STRATEGIES["fsdp2"][0]], "--trainer.strategy.shard_size=2"),  # the part's size is 8
        (
            ["--trainer.devices=2", *STRATEGIES["fsdp2"], "--trainer.strategy.replicate_size=2"],
            "shard_size 2 x replicate_size 2 = 4",
        ),
        ([*STRATEGIES["fsdp2"], "--trainer.strategy.replicate_size=0"], "shard_size 2 x replicate_size 0 = 0"),
        (
            ["--trainer.devices=2", *STRATEGIES["fsdp2"], "--trainer.strategy.prefetch=-1"],
            "trainer.strategy.prefetch must be at least 0",
        ),
        ([*STRATEGIES["fsdp2"], "--trainer.strategy.tensor_parallel_size=2"], "tensor_parallel_size"),
        (
            [
                "--trainer.devices=2",
                "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
                "--trainer.strategy.tensor_parallel_size=2",
            ],
            "tensor parallelism (tensor_parallel_size)",
        ),
        (
            ["--trainer.devices=2", *STRATEGIES["fsdp2"], "--model.backbone.quantization=int8"],
            "model.backbone.quantization int8 does not go with FSDP2",
        ),
        (["--model.backbone.quantization=int3"], "int3"),
        (["--model.offload=[base]"], "model.offload names the base"),
        (["--trainer.devices=3", *STRATEGIES["ddp"]], "4 / 3 = 1.33 samples per process"),
        (["--trainer.accelerator=abacus"], "abacus"),
        (["--trainer.strategy=abacus"], "abacus"),
        ([f"--config={REPOSITORY / 'configs/parts/gpus.yaml'}", "--trainer.strategy.timeout=never"], '"timeout"'),
        (["--seed_everything=-1"], "-1"),
        (["--trainer.limit_train_batches=0"], "limit_train_batches"),
        (["--trainer.max_steps=0"], "max_steps"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_options_that_cannot_be(config, sentence_at_start, options, wanted):
    assert wanted in sentence_at_start("--config", config, *options)


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--model.micro_batches=0", "model.micro_batches must be at least 1, not 0"),
        ("--model.final_step.decode_chunk=0", "model.final_step.decode_chunk must be above 0, not 0"),
        ("--model.policy.weight=-1", "model.policy.weight must be a number from 0 up"),
        ("--model.cold_start=/nowhere", "/nowhere does not exist"),
    ],
)
def test_options_of_stage_2_that_cannot_be(tiny_folder, cold_start, tmp_path, sentence_at_start, option, wanted):
    config = str(write_rtdmd_config(tmp_path, tiny_folder, cold_start))
    assert wanted in sentence_at_start("--config", config, option)


def test_a_high_second_level_is_fine_where_it_is_not_renoised_from(config):
    for option in ("--model.sub_interval=false", "--model.random_stop=false"):
        fit.parse(["--config", config, "--model.sampler.steps=[1000,990,500]", option]).model.check()


@pytest.mark.parametrize("text", ["{broken", '["a list"]', "\xff"])
def test_a_malformed_model_index(tiny_folder, tmp_path, sentence_at_start, text):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    (copy / "model_index.json").write_bytes(text.encode("latin-1"))
    config = str(write_config(tmp_path, copy))
    assert "copy/model_index.json " in sentence_at_start("--config", config)


@pytest.mark.parametrize("part", ["vae", "scheduler"])
def test_a_malformed_config_of_a_part(tiny_folder, tmp_path, sentence_at_start, part):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    (file,) = (copy / part).glob("*config.json")
    file.write_text("{broken")
    sentence = sentence_at_start("--config", str(write_config(tmp_path, copy)))
    assert f"the {part} of the base model" in sentence


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_folder, cold_start, tmp_path_factory):
    """A checkpoint of an update of each stage, by the stage's name."""
    folders = {stage: tmp_path_factory.mktemp(stage) for stage in ("cold_start", "rtdmd")}
    configs = {
        "cold_start": write_config(folders["cold_start"], tiny_folder),
        "rtdmd": write_rtdmd_config(folders["rtdmd"], tiny_folder, cold_start),
    }
    for config in configs.values():
        fit.main(["--config", str(config), "--trainer.max_steps=1"])
    return {stage: folder / "runs/run/checkpoints/last.ckpt" for stage, folder in folders.items()}


@pytest.mark.slow
def test_checkpoints_of_other_runs(trained, tiny_folder, cold_start, tmp_path, sentence_at_start):
    """Another stage's, another rank's, another cold start's; one of before there was an origin; what is no checkpoint."""
    stage_1 = str(write_config(tmp_path / "1", tiny_folder))
    stage_2 = str(write_rtdmd_config(tmp_path / "2", tiny_folder, cold_start))
    other = tmp_path / "other_cold_start"
    shutil.copytree(cold_start, other)
    state = torch.load(other / "fake_score.pt", weights_only=True)
    torch.save({key: value + 1 for key, value in state.items()}, other / "fake_score.pt")
    checkpoint = torch.load(trained["cold_start"], weights_only=True)
    assert checkpoint[ORIGIN_KEY].items() >= {"module": "ACDMDModule", "LoRA": "rank 4, alpha 8"}.items()
    assert checkpoint[ORIGIN_KEY].keys() == {"module", "LoRA", "base's transformer", "base's vae"}
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    (weights,) = (base / "transformer").glob("*.safetensors")
    save_file({key: value * 1.01 for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    del checkpoint[ORIGIN_KEY], checkpoint[SHARDED_KEY]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    (tmp_path / "junk.ckpt").write_text("junk")

    for config, path, options, wanted in (
        (stage_2, trained["cold_start"], [], "its module is ACDMDModule, the run's is RTDMDModule"),
        (stage_1, trained["cold_start"], [f"--model.backbone.pretrained={base}"], "its base's transformer is "),
        (stage_1, trained["rtdmd"], [], "its module is RTDMDModule, the run's is ACDMDModule"),
        (stage_1, trained["cold_start"], ["--model.lora.rank=8"], "its LoRA is rank 4, alpha 8, the run's is rank 8, alpha 8"),
        (stage_2, trained["rtdmd"], [f"--model.cold_start={other}"], "its cold_start_fake_score is "),
        (stage_2, trained["rtdmd"], ["--model.cold_start_fake=base"], "the run's is none"),
        (stage_1, tmp_path / "old.ckpt", [], "an older version saved it"),
        (stage_1, tmp_path / "junk.ckpt", [], "junk.ckpt is not a checkpoint"),
        (stage_1, cold_start / "generator_ema.pt", [], "generator_ema.pt is not a checkpoint of a training run"),
        (stage_1, tmp_path, [], "meta.pt does not exist"),
    ):  # fmt: skip
        assert wanted in sentence_at_start("--config", config, f"--ckpt_path={path}", *options)
    fsdp2 = [*STRATEGIES["fsdp2"], "--trainer.strategy.shard_size=1"]
    for path, wanted in ((trained["cold_start"], "was saved without FSDP2"), (tmp_path / "old.ckpt", "older version")):
        assert wanted in sentence_at_start("--config", stage_1, f"--ckpt_path={path}", *fsdp2)


@pytest.mark.slow
def test_a_base_and_a_cold_start_that_lie_elsewhere_are_the_same(trained, tiny_folder, cold_start, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(cold_start, moved)
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    config = str(write_rtdmd_config(tmp_path, base, moved))
    assert fit.main(["--config", config, f"--ckpt_path={trained['rtdmd']}"]).trainer.global_step == 2


# A folder in use ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_start_is_refused_and_leaves_the_first_runs_files_as_they_are(config, tmp_path, sentence_at_start):
    run = tmp_path / "runs/run"
    fit.main(["--config", config, "--trainer.max_steps=1"])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    sentence = sentence_at_start("--config", config)
    assert f"{run} holds a run already: go on with it by --ckpt_path=last, or give" in sentence
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before

    fit.main(["--config", config, "--ckpt_path=last"])
    assert [json.loads(row)["step"] for row in (run / "eval.jsonl").read_text().splitlines()] == [1, 2]
    assert sorted(path.name for path in run.glob("checkpoints/last*")) == ["last.ckpt"]


@pytest.mark.slow
def test_one_that_left_no_checkpoint_is_not_to_be_resumed(config, tmp_path):
    run = tmp_path / "runs/run"
    run.mkdir(parents=True)
    (run / "eval.jsonl").touch()
    with pytest.raises(UserError, match=r"holds a run already: give this one another --run_dir"):
        fit.main(["--config", config])
    assert fit.main(["--config", config, "--ckpt_path=last"]).trainer.global_step == 2  # cut off early, it begins


def test_a_folder_that_another_process_trains_in_is_refused(config, tmp_path, sentence_at_start):
    """Only while it does: a lock that its process no longer holds is none."""
    folder = tmp_path / "runs/run"
    with locked(folder):
        assert "--run_dir" in sentence_at_start("--config", config)
        assert "--run_dir" in sentence_at_start("--config", config, "--ckpt_path=last")
    with locked(folder):
        pass


@pytest.mark.parametrize("nodes", [1, 2])
def test_processes_that_would_each_be_a_run_of_its_own_are_refused(config, monkeypatch, sentence_at_start, nodes):
    """`devices: 1` under torchrun."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 2 * nodes, "LOCAL_WORLD_SIZE": 2, "RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    sentence = sentence_at_start("--config", config)
    assert "--trainer.devices=2" in sentence and f"--trainer.num_nodes={nodes}" in sentence


@pytest.mark.slow
def test_what_last_finds_is_checked_as_any_checkpoint(config, tmp_path, sentence_at_start):
    fit.main(["--config", config, "--trainer.max_steps=1"])
    sentence = sentence_at_start("--config", config, "--ckpt_path=last", "--model.lora.rank=8")
    assert "runs/run/checkpoints/last.ckpt" in sentence and "the run's is rank 8" in sentence
