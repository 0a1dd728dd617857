"""Stage 1 on the FLUX families' tiny pipelines: in one process, and the same update on two."""

import pytest
import torch
import yaml

from rtdmd_lightning import fit
from tests.tiny import STRATEGIES, load_checkpoint, run, write_config
from tests.tiny_backbones import OPTIONS

BACKBONES = {"flux": "FluxBackbone", "flux_free": "FluxBackbone", "flux2": "Flux2Backbone"}
ROLES = (".generator.", ".fake_score.", ".generator_ema.")


def config_of(folders, name, folder):
    """`tests.tiny.write_config`'s run with another backbone, and no pictures; FLUX.2 trains on two bases."""
    path = write_config(folder, folders[name], batch_size=2, ema_decay=0.5)
    config = yaml.safe_load(path.read_text())
    options = {"pretrained": str(folders[name])} | OPTIONS
    if name == "flux2":
        options["generator_pretrained"] = str(folders["flux2_distilled"])
    backbone = {"class_path": f"rtdmd_lightning.models.{BACKBONES[name]}", "init_args": options}
    config["model"]["init_args"]["backbone"] = backbone
    callbacks = config["trainer"]["callbacks"]
    config["trainer"]["callbacks"] = [one for one in callbacks if "RewardEval" not in one["class_path"]]
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.mark.parametrize("name", BACKBONES)
def test_two_steps_move_every_role_and_write_the_result(name, folders, tmp_path):
    cli = fit.main(["--config", config_of(folders, name, tmp_path)])
    assert cli.trainer.global_step == 2
    result = tmp_path / "runs" / "run" / "cold_start"
    exported = torch.load(result / "generator_ema.pt", weights_only=True)
    assert (result / "pytorch_lora_weights.safetensors").is_file()
    assert all(tensor.abs().sum() > 0 for path, tensor in exported.items() if "lora_B" in path)
    saved = load_checkpoint(tmp_path)["state_dict"]
    for role in ROLES:
        assert any(role in key and "lora_B" in key and value.abs().max() > 1e-4 for key, value in saved.items()), role


@pytest.mark.parametrize("name", ["flux", "flux2"])
def test_two_processes_make_the_single_process_update(name, folders, tmp_path):
    fit.main(["--config", config_of(folders, name, tmp_path / "one"), "--trainer.max_steps=1"])
    expected = load_checkpoint(tmp_path / "one")["state_dict"]
    for strategy, arguments in STRATEGIES.items():
        config = config_of(folders, name, tmp_path / strategy)
        options = ["--trainer.max_steps=1", "--trainer.devices=2", *arguments]
        run("--config", config, *options, processes=2, timeout=200)
        state = load_checkpoint(tmp_path / strategy)["state_dict"]
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-5, msg=f"{strategy} {key}")
    for role in ROLES:
        moved = max(value.abs().max() for key, value in expected.items() if role in key and "lora_B" in key)
        assert moved > 3e-5, role  # B starts at zero: what moved is far beyond the tolerance above
