"""`load_student` draws what `sample` draws, picture by picture."""

import pytest
import torch

from rtdmd_lightning import load_student
from rtdmd_lightning.roles import writing
from rtdmd_lightning.roles.inference import InferenceModel
from rtdmd_lightning.utils.errors import UserError
from tests.support.random_adapters import random_adapter
from tests.support.tiny import BACKBONE_OPTIONS, tiny_backbone

PROMPTS = ["a red circle", "two crosses", "a blue square"]


@pytest.fixture
def adapters(tmp_path) -> list[str]:
    return [str(writing.write_published(random_adapter(rank), tmp_path / str(rank))) for rank in (2, 3)]


@pytest.mark.parametrize(
    ("given", "raw"), [({}, [1000, 750, 500, 250]), ({"steps": 2}, [1000, 500]), ({"steps": [900, 300]}, [900, 300])]
)
def test_it_draws_what_the_commands_draw(given, raw, adapters, tiny_folder):
    model = InferenceModel(tiny_backbone(tiny_folder), adapters, raw, eta=0.5)
    model.load(torch.device("cpu"))
    student = load_student(str(tiny_folder), adapters, device="cpu", **BACKBONE_OPTIONS)
    images = student.draw(PROMPTS, eta=0.5, seed=3, batch_size=2, **given)
    torch.testing.assert_close(images, model.generate(PROMPTS, range(3), seed=3))
    assert not torch.equal(images, student.draw(PROMPTS, eta=0.9, seed=3, **given))


def test_each_adapter_counts_and_so_do_seed_and_batches(adapters, tiny_folder):
    def draw(adapters: list[str], **options) -> torch.Tensor:
        return load_student(str(tiny_folder), adapters, device="cpu", **BACKBONE_OPTIONS).draw(PROMPTS, **options)

    both = draw(adapters)
    assert both.shape == (3, 3, 32, 32) and 0 <= both.min() < both.max() <= 1
    torch.testing.assert_close(draw(adapters, batch_size=1), both)
    for other in (draw(adapters[:1]), draw(adapters[1:]), draw([]), draw(adapters, seed=1)):
        assert (other - both).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "wanted"),
    [({"steps": 0}, "steps"), ({"steps": [250, 500]}, "steps"), ({"eta": 2}, "eta"), ({"batch_size": 0}, "batch_size")],
)
def test_what_cannot_be_drawn_is_refused(options, wanted, tiny_folder):
    student = load_student(str(tiny_folder), device="cpu", **BACKBONE_OPTIONS)
    with pytest.raises(UserError, match=wanted):
        student.draw(PROMPTS, **options)
    for prompts in ([], "a red circle"):
        with pytest.raises(UserError, match="prompt"):
            student.draw(prompts)


def test_one_adapter_is_a_list_too(adapters, tiny_folder):
    with pytest.raises(UserError, match="list of adapters"):
        load_student(str(tiny_folder), adapters[0])
