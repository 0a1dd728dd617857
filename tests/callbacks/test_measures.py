"""What is trained on, what is held out, and their sums."""

import pytest
import torch

from rtdmd_lightning.callbacks.measures import DIVERSITY, measures_of, trained_weights
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import tiny_module

TRAINED = {"shapes": 1.0, "clipscore": 2.0}
MEASURED = ["shapes", "clipscore", "imagereward", "aesthetic", DIVERSITY]


def sums(mixture):
    scores = {"shapes": 0.5, "clipscore": 0.25, "imagereward": 1.5, "aesthetic": 6.0, DIVERSITY: 0.25}
    found = measures_of(MEASURED, TRAINED, mixture).sums(
        {f"eval/{name}": torch.tensor(s) for name, s in scores.items()}
    )
    return {name: float(score) for name, score in found.items()}


def test_by_default_every_held_out_reward_counts_once_and_the_diversity_does_not():
    assert sums(None) == {"eval/trained": 0.5 + 2 * 0.25, "eval/held_out": 1.5 + 6.0}


def test_weights_choose_what_the_mixture_is():
    assert sums({"aesthetic": 0.5, DIVERSITY: 4.0})["eval/held_out"] == 0.5 * 6.0 + 4 * 0.25
    measures = measures_of(MEASURED, TRAINED, {"aesthetic": 0.5})
    assert measures.held_out == {"imagereward": 0.0, "aesthetic": 0.5, DIVERSITY: 0.0}  # all of them are watched


@pytest.mark.parametrize("name", ["shapes", "imagerewrad"])
def test_a_weight_for_what_is_not_held_out_is_refused(name):
    with pytest.raises(UserError, match=f"held_out_weights names '{name}', which is trained on or not measured"):
        measures_of(MEASURED, TRAINED, {name: 1.0})


def test_without_training_on_rewards_there_are_no_sums(tiny_folder):
    trained = trained_weights(tiny_module(tiny_folder))
    assert trained == {}
    assert measures_of(["shapes"], trained, None).sums({"eval/shapes": torch.tensor(0.5)}) == {}
