"""The doctor on real scorers: those that need no download work, those without weights tell how to fetch them."""

import huggingface_hub.constants
import pytest
import torch

from rtdmd_lightning import doctor
from rtdmd_lightning.doctor import Diagnosis, examine, hub_cache_only
from rtdmd_lightning.rewards.registry import REWARDS, reward_class
from rtdmd_lightning.rewards.weights import CACHE_VARIABLE, Source
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny_clip import save_tiny_clip

CPU = torch.device("cpu")
COMMANDS = {
    "aesthetic": ["trl-lib/ddpo-aesthetic-predictor aesthetic-model.pth", "openai/clip-vit-large-patch14"],
    "clipscore": ["openai/clip-vit-large-patch14"],
    "geneval": ["facebook/mask2former-swin-small-coco-instance", "timm/vit_large_patch14_clip_224.openai"],
    "geneval2": ["Qwen/Qwen3-VL-8B-Instruct"],
    "hpsv2": ["xswu/HPSv2 HPS_v2.1_compressed.pt"],
    "hpsv3": ["Qwen/Qwen2-VL-7B-Instruct", "MizzenAI/HPSv3 HPSv3.safetensors"],
    "imagereward": [
        "THUDM/ImageReward ImageReward.pt",
        "THUDM/ImageReward med_config.json",
        "google-bert/bert-base-uncased vocab.txt",
    ],
    "ocr": [],
    "pickscore": ["yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"],
    "shapes": [],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of rewards, an empty one of the hub, and a terminal that is wide enough for any path."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "rewards"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path / "rewards"


def rows(out: str) -> dict[str, list[str]]:
    """The table's cells by reward."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    return {line[0]: line[1:] for line in lines}


@pytest.mark.slow
def test_scorers_that_need_no_download_and_one_from_the_cache(cache, capsys):
    """OCR reads the picture's words, the checker sees its red circle; the CLIP is tiny, random and of the real class."""
    save_tiny_clip(cache / "clipscore")
    doctor.main(["shapes", "ocr", "clipscore", "--device", "cpu"])
    found = rows(capsys.readouterr().out)
    assert found["shapes"][:2] == found["ocr"][:2] == ["yes", "1.000"]
    assert found["clipscore"][0] == "yes" and -1 <= float(found["clipscore"][1]) <= 1
    assert found["clipscore"][3] == str(cache / "clipscore")


def test_what_is_missing_is_told_with_every_command_and_the_status(capsys):
    with pytest.raises(SystemExit) as exit_:
        doctor.main(["shapes", "imagereward", "pickscore", "--device", "cpu"])
    assert exit_.value.code == 1
    out = capsys.readouterr().out
    found = rows(out)
    assert found["shapes"][0] == "yes"
    assert found["imagereward"] == found["pickscore"] == ["no", "-", "-", "-"]
    for name in ("imagereward", "pickscore"):
        for command in COMMANDS[name]:
            assert f"`hf download {command}`" in out


@pytest.mark.parametrize("name", REWARDS)
def test_every_scorer_names_all_that_it_loads(name):
    """In the order of `load`, whose own first complaint must be the same sentence."""
    sources = reward_class(name)().sources()
    assert [" ".join(filter(None, (source.published, source.filename))) for source in sources] == COMMANDS[name]
    if sources:
        problems = examine(name, CPU).problems
        assert len(problems) == len(COMMANDS[name])
        for problem, command in zip(problems, COMMANDS[name], strict=True):
            assert f"`hf download {command}`" in problem


def test_weights_that_do_not_load_are_told(cache):
    (cache / "hpsv2").mkdir(parents=True)
    (cache / "hpsv2" / "HPS_v2.1_compressed.pt").write_bytes(b"cut short")
    diagnosis = examine("hpsv2", CPU)
    assert diagnosis.weights == [str(cache / "hpsv2" / "HPS_v2.1_compressed.pt")]
    assert diagnosis.score is None
    assert "is not a file of weights, download it again" in diagnosis.problems[0]


def test_a_scorer_that_fails_is_told_and_the_next_is_examined(monkeypatch, capsys):
    def fail(*arguments):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(reward_class("ocr"), "load", fail)
    with pytest.raises(SystemExit):
        doctor.main(["ocr", "shapes", "--device", "cpu"])
    out = capsys.readouterr().out
    assert rows(out)["ocr"][0] == "no" and rows(out)["shapes"][0] == "yes"
    assert "ocr: ZeroDivisionError('of all things')" in out


def test_unknown_names_and_devices_are_told(capsys):
    with pytest.raises(SystemExit) as exit_:
        doctor.main(["clipscor", "--device", "cpu"])
    assert exit_.value.code == 1
    assert "there is no reward 'clipscor'; known are aesthetic" in capsys.readouterr().out
    with pytest.raises(UserError, match="--device abacus cannot be used"):
        doctor.main(["shapes", "--device", "abacus"])


def test_the_device_is_lightnings_choice_by_default(capsys):
    doctor.main(["shapes"])
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert f"Scorers on {accelerator or 'cpu'}" in capsys.readouterr().out


def test_part_of_a_repository_in_the_hubs_cache_is_found(tmp_path):
    """`from_pretrained` leaves out files of other frameworks."""
    repository = tmp_path / "hub" / "models--them--pretty"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert Source("pretty", "them/pretty").on_disk() == str(snapshot)
    with pytest.raises(UserError, match="hf download them/other"):
        Source("other", "them/other").on_disk()


def test_nothing_is_downloaded(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(KeyError), hub_cache_only():
        assert huggingface_hub.constants.is_offline_mode()
        raise KeyError
    assert not huggingface_hub.constants.is_offline_mode()
    asked = []
    monkeypatch.setattr(
        doctor,
        "examine",
        lambda *_: asked.append(huggingface_hub.constants.is_offline_mode()) or Diagnosis("shapes", [], score=1.0),
    )
    doctor.main(["shapes", "--device", "cpu"])
    assert asked == [True]
