"""Whole transformers from the command line: a run and its result, stage 2 from it, resuming, and what is refused."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from rtdmd_lightning import fit
from rtdmd_lightning.fitting.closing import sampling_command
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.roles import read
from rtdmd_lightning.roles.inference import InferenceModel
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from rtdmd_lightning.utils.errors import UserError
from tests.support.runs import assert_identical, refused
from tests.support.tiny import load_checkpoint, tiny_backbone, write_config
from tests.support.tiny_rtdmd import write_rtdmd_config

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "two blue crosses"]


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """A stage 1 of two cycles, and its module."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit.main(["--config", str(write_config(folder, tiny_folder, trainable="full"))]).model


@pytest.fixture(scope="module")
def result(trained) -> Path:
    return trained[0] / "runs/run/cold_start"


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer").state_dict()


@pytest.mark.slow
def test_the_result_is_a_transformer_of_diffusers_and_the_fake_scores_lies_beside_it(trained, result, tiny_folder):
    _, module = trained
    base = state_of(tiny_folder)
    for role, folder in ((EMA, result), (FAKE_SCORE, result / "fake_score")):
        state, expected = state_of(folder), module.roles.own_state_dict(role)
        assert_identical(state, expected)
        assert any((state[key] - base[key]).abs().max() > 1e-4 for key in state)
        assert json.loads((folder / "model_index.json").read_text()) == {
            "_class_name": "StableDiffusion3Pipeline",
            "transformer": ["diffusers", "SD3Transformer2DModel"],
        }
    with pytest.raises(UserError, match="transformer_from"):
        read(result)


@pytest.mark.slow
def test_it_is_drawn_with_as_the_backbones_transformer(trained, result, tiny_folder):
    _, module = trained
    settings = module.sampler_settings
    expected = module.generate(PROMPTS, [0, 1], seed=5)
    images = []
    for options in ({"transformer_from": str(result)}, {}):
        model = InferenceModel(tiny_backbone(tiny_folder, **options), steps=settings.steps, eta=settings.eta_of_images)
        model.load(CPU)
        images.append(model.generate(PROMPTS, [0, 1], seed=5))
    assert torch.equal(images[0], expected) and not torch.equal(images[1], expected)
    identities = [tiny_backbone(tiny_folder, transformer_from=each).base_identity() for each in (None, str(result))]
    assert identities[0]["base's vae"] == identities[1]["base's vae"]
    assert identities[0]["base's transformer"] != identities[1]["base's transformer"]


@pytest.mark.slow
def test_the_command_at_the_end_of_a_run_draws_with_it(trained, result, tiny_folder):
    words = shlex.split(sampling_command(trained[1], str(tiny_folder), result))
    assert json.loads(words[words.index("--backbone") + 1]) == {"transformer_from": str(result)}
    assert words[words.index("--guidance_scale") + 1] == "1" and "--adapters" not in words


@pytest.mark.slow
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(trained, tiny_folder, tmp_path):
    arguments = ["--config", str(write_config(tmp_path, tiny_folder, trainable="full"))]
    fit.main([*arguments, "--trainer.max_steps=1"])
    fit.main([*arguments, "--ckpt_path=last"])
    one, other = load_checkpoint(trained[0]), load_checkpoint(tmp_path)
    assert one["global_step"] == other["global_step"] == 2
    assert_identical(one["state_dict"], other["state_dict"])
    assert_identical(one["optimizer_states"], other["optimizer_states"])
    assert {key.split(".")[2] for key in one["state_dict"]} == {GENERATOR, FAKE_SCORE, EMA}
    assert "lora_scale" not in one


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"cold_start_fake": "base"}, {"policy": {"kl_weight": 0.1}}], ids=str)
def test_stage_2_goes_on_from_both_transformers(result, tiny_folder, tmp_path, options):
    fast = {"micro_batches": 2, "ema": {"decay": 0.5, "moves": 1, "every": 1, "warm_up": False}}
    config = str(write_rtdmd_config(tmp_path, tiny_folder, result, trainable="full", **fast, **options))
    start = fit.parse(["--config", config]).model
    start.configure_model()
    assert_identical(start.roles.own_state_dict(GENERATOR), state_of(result))
    fake_score = tiny_folder if "cold_start_fake" in options else result / "fake_score"
    assert_identical(start.roles.own_state_dict(FAKE_SCORE), state_of(fake_score))
    assert len(start.roles.bases) == 4 + ("policy" in options)
    run = fit.main(["--config", config])
    assert run.trainer.global_step == 2
    moved = state_of(tmp_path / "runs/run/rtdmd")
    assert max((value - state_of(result)[key]).abs().max() for key, value in moved.items()) > 3e-5
    assert all(value.isfinite() for value in run.trainer.callback_metrics.values())


@pytest.fixture
def sentence(monkeypatch, capsys):
    """What a command line is refused with, before the base model is read."""

    def load(self):
        pytest.fail("the base model was loaded")

    monkeypatch.setattr(PipelineBackbone, "load", load)
    return lambda *arguments: refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--model.backbone.quantization=int8", "model.backbone.quantization=int8"),
        ("--model.backbone.dtype=bfloat16", "model.backbone.dtype=float32, not bfloat16"),
        ("--model.initial_adapter=a.pt", "model.initial_adapter a.pt"),
        ("--model.trainable=half", "half"),
        ("--model.backbone.transformer_from=/nowhere", "transformer_from: /nowhere"),
    ],
)
def test_options_that_do_not_go_with_it(option, wanted, sentence, tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder, trainable="full"))
    assert wanted in sentence("--config", config, option)


def test_cold_starts_that_cannot_be(sentence, tiny_folder, tmp_path):
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "generator_ema.pt").touch()
    config = str(write_rtdmd_config(tmp_path, tiny_folder, adapters, trainable="full"))
    assert "model.cold_start: " in sentence("--config", config)
    assert "model.cold_start_fake: " in sentence("--config", config, f"--model.cold_start={tiny_folder}")
    smaller = tmp_path / "smaller"
    shutil.copytree(tiny_folder, smaller)
    path = smaller / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 2}))
    told = sentence("--config", config, f"--model.cold_start={smaller}", "--model.cold_start_fake=base")
    assert "its num_layers is 2, not 3" in told


@pytest.mark.slow
def test_a_run_of_adapters_does_not_go_on_from_its_checkpoint(trained, sentence, tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder))
    last = trained[0] / "runs/run/checkpoints/last.ckpt"
    assert "its LoRA is none, the run's is rank 4" in sentence("--config", config, f"--ckpt_path={last}")
