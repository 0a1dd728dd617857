"""The configs of the five real models are the paper's: option by option against `paper_constants.json`, but for the exceptions
that the table in configs/README.md names."""

import json
import re

import pytest

from rtdmd_lightning import fit
from tests.support.tiny import REPOSITORY

PAPER = json.loads((REPOSITORY / "tests/data/paper_constants.json").read_text())
MODELS = list(PAPER["models"])

# Options that deliberately differ, by stage; `configs/README.md` says why, and `configs/parts/paper.yaml` undoes them.
EXCEPTIONS = {
    "cold_start": {"reuse_rollouts", "trajectory_dtype", "lora.dtype", "backbone.vae_dtype"},
    "rtdmd": {"shuffle", "lora.dtype", "backbone.vae_dtype"},
}


def composed(stage, model, *configs, monkeypatch):
    """A config's options after the parser has filled in every default, under `model`; and the rest."""
    monkeypatch.chdir(REPOSITORY)
    paths = [f"configs/{stage}/{model}.yaml", *configs]
    one_process = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--data.prompts=shapes:train"]
    config = fit.parse([*(f"--config={path}" for path in paths), *one_process]).config.as_dict()
    return flat(config["model"]["init_args"]), config


def flat(value, path=""):
    """`{a: {b: 1}}` as `{"a.b": 1}`; `class_path` and `init_args` are left out of the names."""
    if not isinstance(value, dict):
        return {path: list(value) if isinstance(value, tuple) else value}
    value = value.get("init_args", value)
    return {
        name: leaf for key, entry in value.items() for name, leaf in flat(entry, f"{path}.{key}".strip(".")).items()
    }


def theirs(stage, model):
    """What the authors run, by our options."""
    common, of_model = PAPER[f"{'stage1' if stage == 'cold_start' else 'stage2'}_common"], PAPER["models"][model]
    of_stage = of_model["stage1" if stage == "cold_start" else "stage2"]
    guidance = of_model["teacher_guidance"]
    first = PAPER["stage1_common"]
    options = {
        "backbone.pretrained": of_model["base"],
        "backbone.resolution": of_model["resolution"],
        "backbone.max_sequence_length": of_model["text_tokens"],
        "backbone.vae_dtype": "bfloat16",
        "guidance_scale": [guidance, guidance],
        "sampler.steps": common["timesteps"],
        "sampler.eta": common["eta"],
        "sampler.draw_eta": None,
        "lora.rank": common["lora_rank"],
        "lora.alpha": common["lora_alpha"],
        "lora.init_std": common["lora_a_std"],
        "lora.dtype": "bfloat16",
        "lora.targets": None,
        "sub_interval": True,
        "fake_target": "ambient",
        "normalizer": "paper",
        "fake_weight": "clamped",
        "consistency.weight": first["consistency_weight"] if of_stage.get("consistency", True) else 0.0,
        "consistency.max_delta": first["consistency_max_delta"],
        "consistency.moves": first["consistency_moves"],
        "consistency.samples": first["consistency_samples"],
        "consistency.transition": "cps",
        "fake_optimizer.learning_rate": of_stage["lr_fake"],
    }
    if of_model["student_guidance_input"] is not None:
        options["backbone.guidance"] = of_model["student_guidance_input"]
    if "generator_base" in of_model:
        options["backbone.generator_pretrained"] = of_model["generator_base"]
    for role in ("generator", "fake"):
        options |= {
            f"{role}_optimizer.betas": first["betas"],
            f"{role}_optimizer.eps": first["eps"],
            f"{role}_optimizer.max_grad_norm": common["max_grad_norm"],
            f"{role}_optimizer.decay_steps": 0,
        }
    return options | (cold_start(common, of_stage) if stage == "cold_start" else rtdmd(common, of_stage))


def cold_start(common, of_stage):
    return {
        "generator_optimizer.learning_rate": of_stage["lr_generator"],
        "generator_optimizer.weight_decay": common["weight_decay"],
        "fake_optimizer.weight_decay": common["weight_decay"],
        "batch_size": common["batch_per_gpu"] * common["gpus"],
        "fake_update_ratio": common["fake_updates_per_generator_update"],
        "random_stop": common["random_stop"],
        "reuse_rollouts": common["reuse_rollouts"],
        "trajectory_dtype": "bfloat16",
        "ema.decay": common["ema_decay_per_fake_update"],
        "ema.moves": None,  # one per fake-score update
        "ema.every": 1,
        "ema.warm_up": False,
    }


def rtdmd(common, of_stage):
    return {
        "generator_optimizer.learning_rate": common["lr_generator"],
        "generator_optimizer.weight_decay": common["weight_decay_generator"],
        "fake_optimizer.weight_decay": common["weight_decay_fake"],
        "batch_size": of_stage["batch_per_gpu"] * of_stage["gpus"],
        "images_per_prompt": of_stage["images_per_prompt"],
        "micro_batches": common["micro_batches_per_gpu"],
        "trajectory_dtype": "float32",
        "shuffle": True,
        "policy.weight": 1.0,
        "policy.clip_range": common["clip_range"],
        "policy.advantage_clip": common["advantage_clip"],
        "policy.kl_weight": common["kl_weight"],
        "policy.trained_steps": common["trained_stochastic_steps"],
        "policy.steps": None,  # all the stochastic ones
        "policy.global_std": common["global_std"],
        "policy.shared_noise": True,
        "policy.exact_log_prob": False,
        "final_step.matching_weight": common["matching_weight"],
        "final_step.reward_weight": common["reward_weight"],
        "final_step.reward_ceiling": common["reward_ceiling"],
        "rewards.weights": common["rewards"],
        "ema.decay": common["ema_decay"],
        "ema.moves": None,  # one per micro-batch
        "ema.every": common["ema_every"],
        "ema.warm_up": True,
    }


def differing(ours, stage, model):
    """The options that are not the authors'. A standard deviation of 1/rank may be left to the default."""
    if ours["lora.init_std"] is None:
        ours = ours | {"lora.init_std": 1 / ours["lora.rank"]}
    weights = {
        name.removeprefix("rewards.weights."): w for name, w in ours.items() if name.startswith("rewards.weights.")
    }
    ours = ours | ({"rewards.weights": weights} if weights else {})
    expected = theirs(stage, model)
    assert expected.keys() <= ours.keys(), expected.keys() - ours.keys()
    return {name for name, value in expected.items() if ours[name] != value}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stage", ["cold_start", "rtdmd"])
def test_every_option_is_the_papers_but_for_the_named_exceptions(stage, model, monkeypatch):
    options, _ = composed(stage, model, monkeypatch=monkeypatch)
    assert differing(options, stage, model) == EXCEPTIONS[stage]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stage", ["cold_start", "rtdmd"])
def test_after_paper_yaml_no_option_differs(stage, model, monkeypatch):
    options, _ = composed(stage, model, "configs/parts/paper.yaml", monkeypatch=monkeypatch)
    assert differing(options, stage, model) == set()


@pytest.mark.parametrize("model", MODELS)
def test_the_rewards_and_what_is_back_propagated(model, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    one_process = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--data.prompts=shapes:train"]
    rewards = fit.parse([f"--config=configs/rtdmd/{model}.yaml", *one_process]).model.rewards
    assert set(rewards.differentiable) == set(PAPER["stage2_common"]["back_propagated"])
    assert rewards.rewards["clipscore"].resize == "bilinear"


@pytest.mark.parametrize("model", MODELS)
def test_the_length_of_stage_1_and_the_gpus(model, monkeypatch):
    _, config = composed("cold_start", model, monkeypatch=monkeypatch)
    first, second = PAPER["stage1_common"], PAPER["stage2_common"]
    updates = first["fake_updates_of_published_checkpoint"] // first["fake_updates_per_generator_update"]
    assert config["trainer"]["max_steps"] == updates
    _, config = composed("rtdmd", model, monkeypatch=monkeypatch)
    assert config["trainer"]["max_steps"] == second["epochs_of_published_checkpoint"]
    assert 8 * config["trainer"]["num_nodes"] == PAPER["models"][model]["stage2"]["gpus"]


@pytest.mark.parametrize("stage", ["cold_start", "rtdmd"])
@pytest.mark.parametrize("model", MODELS)
def test_dmd2_is_one_config_more(stage, model, monkeypatch):
    options, _ = composed(stage, model, "configs/parts/dmd2.yaml", monkeypatch=monkeypatch)
    assert not options["sub_interval"] and options["consistency.weight"] == 0
    assert options["fake_weight"] == "unit" and options["renoise.fake_score"] == "logit_normal"


def test_the_readmes_table_names_every_exception_and_no_other():
    """Its rows' options in `code`, under the heading of what can be switched."""
    text = (REPOSITORY / "configs/README.md").read_text()
    table = text.split("## Ours and the authors'")[1].split("Not to be switched")[0]
    named = set(re.findall(r"^\|.*\| `model\.([a-z_.]+)[:=]", table, flags=re.MULTILINE))
    assert named == set().union(*EXCEPTIONS.values())
