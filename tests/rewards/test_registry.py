"""Rewards by name, by class path, and in YAML."""

import importlib.util
import re
import subprocess
import sys

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.rewards.registry import REWARDS, reward_class
from rtdmd_lightning.rewards.shapes import ShapesReward
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import REPOSITORY

PUBLISHED = {"clipscore", "pickscore", "hpsv2", "imagereward", "aesthetic", "hpsv3", "ocr", "geneval", "geneval2"}


def test_the_fixed_names_are_there():
    assert set(REWARDS) == PUBLISHED | {"shapes"}


@pytest.mark.parametrize("name", REWARDS)
def test_a_name_leads_to_a_reward_of_that_name(name):
    """Also that no constructor needs weights."""
    reward = reward_class(name)()
    assert reward.name == name
    assert isinstance(reward.differentiable, bool)


@pytest.mark.slow
def test_asking_for_one_imports_no_other():
    script = """
import sys
from rtdmd_lightning.rewards.registry import REWARDS, reward_class
reward_class("shapes")
print([name for name, path in REWARDS.items() if path.rpartition(".")[0] in sys.modules], "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, text=True, capture_output=True, check=True)
    assert done.stdout == "['shapes'] False\n"


def test_a_class_path_will_do():
    assert reward_class("rtdmd_lightning.rewards.shapes.ShapesReward") is ShapesReward


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("clipscor", "no reward 'clipscor'; known are aesthetic, clipscore"),
        ("nowhere.at.All", "cannot be imported: No module named 'nowhere'"),
        ("rtdmd_lightning.rewards.shapes.Shape", "cannot be imported"),
        ("rtdmd_lightning.rewards.mixture.RewardMixture", "not a subclass"),
    ],
)
def test_a_wrong_name_is_told(name, match):
    with pytest.raises(UserError, match=match):
        reward_class(name)


def mixture_from(text: str) -> RewardMixture:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RewardMixture, "mixture")
    return parser.instantiate_classes(parser.parse_string(text)).mixture


def readme_blocks(language: str) -> list[str]:
    readme = (REPOSITORY / "rtdmd_lightning" / "rewards" / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", readme, flags=re.DOTALL)


def test_the_readmes_own_reward_works(tmp_path, monkeypatch):
    """The ten lines and the YAML that the README shows, through the parser that the configs go through."""
    (source,) = readme_blocks("python")
    (tmp_path / "my_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("my_rewards") is not None
    (yaml,) = [block for block in readme_blocks("yaml") if "my_rewards" in block]
    mixture = mixture_from(yaml)
    mixture.to(torch.device("cpu"))
    pixels = torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    own = mixture.rewards["warmth"]
    assert mixture.differentiable == ["warmth"]
    assert isinstance(own, Reward) and len(source.strip().splitlines()) <= 12
    own.score(pixels, ["a", "b"], [{}, {}]).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad[:, 0].mean() > 0 > pixels.grad[:, 2].mean()


def test_an_unknown_resize_in_a_config_is_refused():
    text = """
mixture:
  rewards: [{class_path: rtdmd_lightning.rewards.pickscore.PickScoreReward, init_args: {resize: nearest}}]
  weights: {pickscore: 1.0}
"""
    with pytest.raises(ArgumentError, match="resize"):
        mixture_from(text)


def test_a_misspelled_option_of_a_reward_is_refused():
    text = """
mixture:
  rewards: [{class_path: rtdmd_lightning.rewards.shapes.ShapesReward, init_args: {strikt: true}}]
  weights: {shapes: 1.0}
"""
    with pytest.raises(ArgumentError, match="strikt"):
        mixture_from(text)
