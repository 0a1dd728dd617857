"""One process reads the base and the other gets it: the same weights, and no more private memory than it takes."""

import json
import shutil

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file

from tests.support.loading import MEBIBYTE, digest
from tests.support.tiny import BACKBONE_OPTIONS, STRATEGIES, write_config

BLOCKS = 8


def loaded(pair, config, folder, *options) -> list[dict]:
    """What `WatchLoading` saw, by rank, of a run of one step."""
    folder.mkdir()
    watch = ["--callbacks.watch=tests.support.loading.WatchLoading", f"--callbacks.watch.folder={folder}"]
    pair.fit("--config", str(config), "--trainer.max_steps=1", "--callbacks.export=null", *watch, *options)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_second_process_gets_the_weights_that_only_the_first_can_read(strategy, pair, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "base")
    shutil.copytree(tiny_folder, tmp_path / "base-1")
    (tmp_path / "base-1/transformer/diffusion_pytorch_model.safetensors").unlink()
    backbone = {
        "class_path": "tests.support.loading.OneReads",
        "init_args": {"pretrained": str(tmp_path / "base"), **BACKBONE_OPTIONS},
    }
    config = write_config(tmp_path, tiny_folder, backbone=backbone)
    first, second = loaded(pair, config, tmp_path / "seen", *STRATEGIES[strategy])
    state = load_file(tiny_folder / "transformer/diffusion_pytorch_model.safetensors")
    assert first["digests"] == second["digests"] == {path: digest(tensor) for path, tensor in state.items()}


@pytest.fixture
def large_folder(tiny_folder, tmp_path):
    """The tiny pipeline with a transformer that memory can tell: float32 on disk, as a base that has to be cast."""
    shutil.copytree(tiny_folder, tmp_path / "large")
    config = SD3Transformer2DModel.load_config(tiny_folder / "transformer")
    size = {"num_layers": BLOCKS, "num_attention_heads": 8, "attention_head_dim": 64, "caption_projection_dim": 512}
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(config | size)
    transformer.to_empty(device="cpu")
    for tensor in transformer.state_dict().values():
        tensor.uniform_(-0.02, 0.02)
    transformer.save_pretrained(tmp_path / "large/transformer")
    return tmp_path / "large"


def test_a_sharded_base_is_held_once_by_a_machine_while_it_is_loaded(pair, tiny_folder, large_folder, tmp_path):
    """Cast to bfloat16, the reader holds one copy, the other its half and a block; two copies if both read."""
    loaded(pair, write_config(tmp_path / "warm", tiny_folder), tmp_path / "warm/seen", *STRATEGIES["fsdp2"])
    config = write_config(tmp_path, large_folder)
    reader, other = loaded(pair, config, tmp_path / "seen", *STRATEGIES["fsdp2"], "--model.backbone.dtype=bfloat16")
    state = load_file(large_folder / "transformer/diffusion_pytorch_model.safetensors")
    assert reader["digests"] == other["digests"] == {path: digest(value.bfloat16()) for path, value in state.items()}
    base = sum(tensor.numel() for tensor in state.values()) * 2 / MEBIBYTE
    assert base > 100
    assert reader["memory"] < 1.4 * base and other["memory"] < 0.9 * base
