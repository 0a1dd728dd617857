"""Rewards of the user's own that go wrong: one sentence with the reward, or the file and line, wherever they are used."""

import math
import re

import pytest
import torch
from jsonargparse import ArgumentParser

from rtdmd_lightning.doctor import examine
from rtdmd_lightning.evaluation.images import write_image
from rtdmd_lightning.evaluation.predict import ScoreImages
from rtdmd_lightning.evaluation.tasks import ImageTask
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import RewardError, RewardMixture
from rtdmd_lightning.rewards.registry import reward_class
from rtdmd_lightning.rewards.serving.scoring_queue import ScoringQueue, score_batch
from rtdmd_lightning.rewards.serving.wire import decode, encode
from rtdmd_lightning.serve import build_reward
from rtdmd_lightning.utils.configuration import expand_config_arguments, refusals_of_libraries
from rtdmd_lightning.utils.errors import UserError

CPU = torch.device("cpu")
HEAD = "import sys\nfrom rtdmd_lightning.rewards.base import Reward\n"
GOOD = "    def score(self, images, prompts, metadata): return images.mean((1, 2, 3))\n"
CLASS = f"class Own(Reward):\n    name, differentiable = 'own', False\n{GOOD}"
SOURCES = {
    "own_syntax": "class Own(:\n",
    "own_import": f"{HEAD}raise KeyError('while it is imported')\n",
    "own_exit": f"{HEAD}sys.exit(3)\n",
    "own_init": f"{HEAD}{CLASS}    def __init__(self): raise KeyError('in its constructor')\n",
    "own_init_exit": f"{HEAD}{CLASS}    def __init__(self): sys.exit(3)\n",
    "own_nameless": f"{HEAD}class Own(Reward):\n    differentiable = False\n{GOOD}",
    "own_number": f"{HEAD}class Own(Reward):\n    name, differentiable = 3, False\n{GOOD}",
    "own_undecided": f"{HEAD}class Own(Reward):\n    name = 'own'\n{GOOD}",
    "own_abstract": f"{HEAD}class Own(Reward):\n    name, differentiable = 'own', False\n",
}
WANTED = {
    "own_syntax": r"own_syntax\.py, line 1",
    "own_import": r"own_import\.py, line 3: KeyError: 'while it is imported'",
    "own_exit": r"own_exit\.py, line 3: it calls sys\.exit\(3\)",
    "own_init": r"own_init\.py, line 6: KeyError: 'in its constructor'",
    "own_init_exit": r"own_init_exit\.py, line 6: it calls sys\.exit\(3\)",
    "own_nameless": "Own wants a name",
    "own_number": r"Own\.name must be a text, not 3",
    "own_undecided": "Own wants a name and differentiable",
    "own_abstract": "is abstract",
}


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    for name, source in SOURCES.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("module", SOURCES)
def test_what_cannot_be_made_is_told_by_the_server(module):
    with pytest.raises(UserError, match=WANTED[module]):
        build_reward(f"{module}.Own", {})


def test_the_doctor_tells_it_and_goes_on():
    diagnosis = examine("own_init.Own", CPU)
    assert re.search(WANTED["own_init"], diagnosis.problems[0])


@pytest.mark.parametrize("module", [name for name in SOURCES if name != "own_abstract"])
def test_what_cannot_be_made_is_told_of_a_config(module, tmp_path):
    """As `fit` and `evaluate` read one; an abstract class is the parser's own matter."""
    config = tmp_path / "config.yaml"
    config.write_text(f"mixture: {{rewards: [{{class_path: {module}.Own}}], weights: {{own: 1.0}}}}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(RewardMixture, "mixture")
    with pytest.raises(UserError, match=WANTED[module]), refusals_of_libraries():
        parser.instantiate(parser.parse_args(expand_config_arguments(["--config", str(config)])))


@pytest.mark.parametrize("module", ["own_syntax", "own_exit"])
def test_a_module_that_cannot_be_imported_is_told_of_an_option(module):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    with pytest.raises(UserError, match=WANTED[module]), refusals_of_libraries():
        parser.instantiate(parser.parse_args([f"--reward={module}.Own"]))


def test_a_module_that_is_not_there_is_told():
    with pytest.raises(UserError, match="No module named 'nowhere'"):
        reward_class("nowhere.Own")


class Odd(Reward):
    """Returns, or does, what it is told to."""

    name, differentiable = "odd", False

    def __init__(self, does) -> None:
        self.does = does

    def score(self, images, prompts, metadata):
        return self.does(images, len(prompts))


def fails(images, count):
    raise KeyError("somewhere")


ODD = {
    "list": (lambda images, count: [0.0] * count, "returned a list"),
    "None": (lambda images, count: None, "returned a NoneType"),
    "numpy": (lambda images, count: images.mean((1, 2, 3)).numpy(), "returned a ndarray"),
    "number": (lambda images, count: 1.0, "returned a float"),
    "complex": (lambda images, count: torch.zeros(count, dtype=torch.complex64), r"returned torch\.complex64"),
    "shape": (lambda images, count: torch.zeros(count, 1), r"returned \(2, 1\) for 2 prompts"),
    "raises": (fails, "KeyError"),
    "exits": (lambda images, count: exit(4), "SystemExit"),
}


@pytest.fixture
def tasks(tmp_path):
    made = [ImageTask(index, {"prompt": name}, tmp_path / f"{name}.png") for index, name in enumerate("ab")]
    for task in made:
        write_image(torch.rand(3, 4, 4), task.path)
    return made


@pytest.mark.parametrize("kind", ODD)
def test_what_an_evaluation_cannot_use_is_told_with_the_image(kind, tasks):
    does, wanted = ODD[kind]
    scoring = ScoreImages("scores", [tasks], Odd(does))
    scoring.on_predict_start()
    with torch.inference_mode(), pytest.raises(UserError, match=wanted) as caught:
        scoring.predict_step(0)
    assert "'odd'" in str(caught.value) and str(tasks[0].path) in str(caught.value)


@pytest.mark.parametrize("kind", ODD)
def test_what_a_run_cannot_use_is_told_with_the_reward(kind):
    does, wanted = ODD[kind]
    with pytest.raises(RewardError, match=wanted) as caught:
        RewardMixture([Odd(does)], {"odd": 1.0}).score(torch.rand(2, 3, 4, 4), ["a", "b"], [{}, {}])
    assert "'odd'" in str(caught.value)


@pytest.mark.parametrize("kind", ODD)
def test_what_a_server_cannot_use_is_told_to_the_client_and_the_server_lives(kind, capsys):
    does, wanted = ODD[kind]
    queue = ScoringQueue(batch_size=2, max_waiting=9, max_pixels=99)
    queue.submit("a", decode(encode("odd", torch.rand(2, 3, 4, 4), ["a", "b"], [{}, {}])))
    queue.settle(score_batch(Odd(does), queue.next_batch(), CPU))
    found = queue.job("a", hold=0)
    assert found is not None and found.failure is not None
    assert re.search(wanted, found.failure.told)


def test_a_reward_that_changes_its_images_is_told():
    """The next reward would score others, and the policy would learn from scores of images that nobody drew."""
    images = torch.rand(2, 3, 4, 4)
    own = Odd(lambda images, count: images.mul_(0).mean((1, 2, 3)))
    with pytest.raises(RewardError, match="'odd' changes the images"):
        RewardMixture([own], {"odd": 1.0}).score(images, ["a", "b"], [{}, {}])


def test_scores_of_whole_numbers_and_without_a_limit_are_as_before(tasks):
    """Whole numbers are scores; what is not finite is told with its image."""
    scoring = ScoreImages("scores", [tasks], Odd(lambda images, count: torch.arange(count)))
    scoring.on_predict_start()
    scoring.predict_step(0)
    assert scoring.table.scores.tolist() == [0, 1]
    scoring = ScoreImages("scores", [tasks], Odd(lambda images, count: torch.tensor([0.0, math.nan])))
    scoring.on_predict_start()
    with pytest.raises(UserError, match=r"odd gives nan for .*b\.png"):
        scoring.predict_step(0)


def test_weights_that_cannot_be_loaded_are_told_with_the_line(tasks):
    class Weightless(Odd):
        def load(self) -> None:
            raise OSError("no such weights")

    scoring = ScoreImages("scores", [tasks], Weightless(lambda images, count: torch.zeros(count)))
    with pytest.raises(UserError, match=r"test_own_rewards\.py, line \d+: OSError: no such weights"):
        scoring.on_predict_start()
