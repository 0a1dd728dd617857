"""An image's file name changes with everything that makes the image, and with nothing else."""

import copy

import pytest
import torch

from rtdmd_lightning.evaluation.images import data_uri, read_image, write_image
from rtdmd_lightning.evaluation.tasks import content_digest, in_batches, settings_digest, slug, tasks_of


@pytest.fixture
def settings(tmp_path):
    """As in a config, naming a file and a folder."""
    base, adapter = tmp_path / "base", tmp_path / "adapter.pt"
    (base / "transformer").mkdir(parents=True)
    (base / "transformer" / "weights.bin").write_bytes(bytes(300_000))
    adapter.write_bytes(bytes(1000))
    backbone = {"class_path": "x.Backbone", "init_args": {"pretrained": str(base), "resolution": 32}}
    return {"backbone": backbone, "adapters": [str(adapter)], "steps": [1000, 500], "eta": 0.9, "seed": 0}


def test_the_same_settings_have_the_same_digest(settings):
    assert settings_digest(settings) == settings_digest(copy.deepcopy(settings))
    assert settings_digest(settings) == settings_digest(dict(reversed(settings.items())))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(steps=[1000, 750]),
        lambda s: s.update(seed=1),
        lambda s: s.update(adapters=[]),
        lambda s: s.update(adapters=s["adapters"] * 2),
        lambda s: s["backbone"]["init_args"].update(resolution=64),
    ],
)
def test_other_settings_have_another(settings, change):
    before = settings_digest(settings)
    change(settings)
    assert settings_digest(settings) != before


def test_where_embeddings_are_kept_is_no_matter(settings, tmp_path):
    """A cache grows while images are drawn."""
    before = settings_digest(settings)
    settings["backbone"]["init_args"].update(embedding_cache=str(tmp_path / "base"), text_encoders=False)
    assert settings_digest(settings) == before


def test_what_only_the_tables_show_is_no_matter(settings):
    assert settings_digest(settings | {"published": "RTDMD"}) == settings_digest(settings)


@pytest.mark.parametrize(("name", "at"), [("adapter.pt", 500), ("base/transformer/weights.bin", 299_999)])
def test_other_weights_under_the_same_name_have_another(settings, tmp_path, name, at):
    """Retrained: the size is the same, the bytes are not."""
    before = settings_digest(settings)
    weights = bytearray((tmp_path / name).read_bytes())
    weights[at] = 1
    (tmp_path / name).write_bytes(weights)
    assert settings_digest(settings) != before


def test_a_renamed_file_in_a_folder_changes_its_digest(settings, tmp_path):
    before = content_digest(tmp_path / "base")
    (tmp_path / "base/transformer/weights.bin").rename(tmp_path / "base/transformer/other.bin")
    assert content_digest(tmp_path / "base") != before


def test_a_prompts_file_depends_on_its_text_and_place_only(tmp_path):
    def planned(*prompts, digest="d"):
        tasks = tasks_of(tmp_path, "E", digest, {"set": [{"prompt": prompt} for prompt in prompts]})["set"]
        assert [task.prompt for task in tasks] == list(prompts)
        return [task.path for task in tasks]

    assert planned("a", "b") == planned("a", "b", "c")[:2]  # a longer set keeps the images that it has
    assert planned("a", "x")[1] != planned("a", "b")[1]
    assert not set(planned("a", "b")) & set(planned("b", "a"))
    assert not set(planned("a", "b")) & set(planned("a", "b", digest="e"))


def test_batches_hold_every_task_once_in_order():
    assert in_batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


def test_slugs():
    assert slug("Teacher, 28 steps (CFG 3)") == "teacher_28_steps_cfg_3" and slug("../η") == "_"


def test_images_are_lossless_and_whole(tmp_path):
    image = torch.randint(0, 256, (3, 8, 12), generator=torch.Generator().manual_seed(0)) / 255
    write_image(image, tmp_path / "deep" / "image.png")
    assert torch.equal(read_image(tmp_path / "deep" / "image.png"), image)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["image.png"]


def test_small_images_are_embedded_as_they_are_and_large_ones_smaller(tmp_path):
    path = tmp_path / "image.png"
    write_image(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), path)
    assert data_uri(path, 64).startswith("data:image/png;base64,")
    assert data_uri(path, 32).startswith("data:image/jpeg;base64,")
    assert len(data_uri(path, 32)) < len(data_uri(path, 64)) / 2
