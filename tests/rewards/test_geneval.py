"""GenEval on tiny networks of the real classes, and on hand-made detector outputs and colours where a verdict is wanted."""

import json
import shutil
from types import SimpleNamespace

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import masks_to_boxes
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, SwinConfig

from rtdmd_lightning.geneval.vocabulary import COCO_CLASSES, COLORS
from rtdmd_lightning.rewards import geneval
from rtdmd_lightning.rewards.geneval import GenEvalReward, threshold
from rtdmd_lightning.rewards.geneval_color import TEMPLATES, ColorNamer, Objects, cut_out
from rtdmd_lightning.rewards.instances import Segment, boxes, instances
from rtdmd_lightning.utils.errors import UserError
from tests.support.scorers import pictures, to_pil

CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
RED, BLUE, WHITE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP as open_clip's folders on the hub are laid out."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    network = open_clip.CLIP(**CLIP)
    save_file(
        {key: tensor.contiguous() for key, tensor in network.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    cfg = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": cfg}))
    return folder


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=10, num_labels=80,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 107}).save_pretrained(folder)
    return folder


@pytest.fixture
def reward(detector_folder, clip_folder):
    reward = GenEvalReward(detector=str(detector_folder), clip=str(clip_folder))
    reward.to(torch.device("cpu"))
    return reward


class Scene(nn.Module):
    """Stands in for the detector: the same three queries for every image, of given classes, confidences and squares."""

    def __init__(self, *objects: tuple[str, float, tuple[int, int, int, int]], size: int = 64) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=80)
        self.classes = torch.full((len(objects), 81), -50.0)
        self.classes[:, 80] = 0  # "no object" takes what the class leaves
        self.masks = torch.full((len(objects), size, size), -50.0)
        for query, (label, confidence, (x0, y0, x1, y1)) in enumerate(objects):
            self.classes[query, COCO_CLASSES.index(label)] = torch.tensor(confidence).logit()
            self.masks[query, y0:y1, x0:x1] = 50.0

    def forward(self, pixels):
        batch = len(pixels)
        masks = self.masks.expand(batch, -1, -1, -1)
        return SimpleNamespace(class_queries_logits=self.classes.expand(batch, -1, -1), masks_queries_logits=masks)


class MeanColorClip(nn.Module):
    """Stands in for CLIP: an image's embedding is its mean colour above grey, a text's the colour that it names."""

    logit_scale = torch.zeros(())

    def encode_image(self, pixels):
        return pixels.mean((2, 3)) - 0.5

    def encode_text(self, texts):
        named = {"red": RED, "blue": BLUE, "white": WHITE}
        other = (0.5, 0.52, 0.5)
        return torch.tensor([next((named[c] for c in named if f" {c}" in t), other) for t in texts]) - 0.5


@pytest.fixture
def seeing(reward, monkeypatch):
    """The reward with the stand-ins: `seeing(scene)`."""

    def make(scene: Scene, strict: bool = False) -> GenEvalReward:
        monkeypatch.setattr(reward, "_detector", scene)
        monkeypatch.setattr(reward, "strict", strict)
        colors = reward._colors
        colors._clip, colors._tokenize, colors._preprocess, colors._classifiers = (
            MeanColorClip(),
            Texts,
            lambda x: x,
            {},
        )
        monkeypatch.setattr(colors, "_preprocess", lambda x: torch.nn.functional.interpolate(x, (8, 8)))
        return reward

    return make


class Texts(list):
    def to(self, device):
        return self


def painted(**squares: tuple[tuple[float, ...], tuple[int, int, int, int]]) -> torch.Tensor:
    image = torch.ones(3, 64, 64)
    for color, (x0, y0, x1, y1) in squares.values():
        image[:, y0:y1, x0:x1] = torch.tensor(color).view(3, 1, 1)
    return image


def metadata(*include: dict, tag: str = "single_object") -> dict:
    return {"tag": tag, "include": list(include)}


LEFT_BOX, RIGHT_BOX = (4, 24, 20, 40), (44, 24, 60, 40)


def test_verdicts_from_detector_outputs(seeing):
    """A red dog on the left and a blue cat on the right: count, colour and position, right and wrong."""
    reward = seeing(Scene(("dog", 0.95, LEFT_BOX), ("cat", 0.95, RIGHT_BOX)))
    image = painted(dog=(RED, LEFT_BOX), cat=(BLUE, RIGHT_BOX))
    dog, cat = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}
    asked = [
        (metadata(dog), 1),
        (metadata(dog | {"count": 2}), 1 / 2),
        (metadata(dog | {"color": "red"}, cat | {"color": "blue"}), 1),
        (metadata(dog | {"color": "blue"}), 1 / 2),
        (metadata(dog, cat | {"position": ["right of", 0]}), 1),
        (metadata(dog, cat | {"position": ["left of", 0]}), 3 / 4),
        (metadata({"class": "cow", "count": 1}), 0),
    ]
    scores = reward.score(image.repeat(len(asked), 1, 1, 1), [""] * len(asked), [entry for entry, _ in asked])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor([float(score) for _, score in asked]))
    reward.strict = True
    strict = reward.score(image.repeat(len(asked), 1, 1, 1), [""] * len(asked), [entry for entry, _ in asked])
    assert strict.tolist() == [1, 0, 1, 0, 1, 0, 0]


def test_the_colour_is_the_masks_not_the_boxes(seeing):
    """A red L in a blue box: what is outside the mask turns grey."""
    reward = seeing(Scene(("dog", 0.95, LEFT_BOX)))
    image = painted(box=(BLUE, LEFT_BOX), part=(RED, (4, 24, 8, 40)))
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[24:40, 4:8] = True
    segments = [Segment(16, 0.95, of_object, LEFT_BOX) for of_object in (mask, torch.ones_like(mask))]
    groups = [Objects("dog", image, some, True) for some in (segments[:1], [], segments[::-1])]
    uncolored = Objects("dog", image, segments, False)
    assert reward._colors.name_colors([*groups[:2], uncolored, groups[2]]) == [["red"], [], ["", ""], ["blue", "red"]]
    crop = cut_out(image, mask, LEFT_BOX)
    assert crop.shape == (3, 16, 16)
    assert torch.equal(crop[:, 0, 4], torch.tensor([0.6] * 3)) and torch.equal(crop[:, 0, 3], torch.tensor(RED))


@pytest.mark.parametrize(("confidence", "tag", "found"), [
    (0.29, "single_object", 0), (0.31, "single_object", 1), (0.31, "counting", 0), (0.89, "counting", 0), (0.91, "counting", 1),
])  # fmt: skip
def test_thresholds(seeing, confidence, tag, found):
    """0.3 for all prompts but the counting ones, 0.9 for those, whatever else is in the batch."""
    reward = seeing(Scene(("dog", confidence, LEFT_BOX)))
    other = "single_object" if tag == "counting" else "counting"
    entries = [metadata({"class": "dog", "count": 1}, tag=each) for each in (tag, other)]
    assert reward.score(torch.ones(2, 3, 64, 64), ["", ""], entries)[0] == found


def test_counting_has_the_stricter_threshold():
    assert [threshold({"tag": tag}) for tag in ("counting", "colors", "position")] == [0.9, 0.3, 0.3]


def test_overlapping_objects_all_count(seeing):
    reward = seeing(Scene(("dog", 0.95, LEFT_BOX), ("dog", 0.92, LEFT_BOX)))
    entry = metadata({"class": "dog", "count": 2}, tag="counting")
    assert reward.score(torch.ones(1, 3, 64, 64), [""], [entry]).item() == 1


def test_boxes():
    """Right and bottom are exclusive, as the published evaluation's boxes are; an empty mask has none."""
    masks = torch.zeros(3, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[1, 9, 11] = masks[1, 0, 4] = True
    assert boxes(masks[:2]).tolist() == [[3, 2, 9, 5], [4, 0, 12, 10]]
    assert boxes(masks)[2, 2] == 0


@pytest.mark.parametrize("shape", [(64, 64), (96, 64), (50, 75)])
def test_boxes_are_in_the_images_own_pixels(seeing, shape):
    """The middle half of the detector's field is the middle half of the picture, square or not."""
    reward = seeing(Scene(("dog", 0.95, (16, 16, 48, 48))))
    ((segment,),) = reward.segments(torch.ones(1, 3, *shape), [0.3])
    x0, y0, x1, y1 = segment.box
    height, width = shape
    expected = torch.tensor([width / 4, height / 4, 3 * width / 4, 3 * height / 4])
    assert (torch.tensor([x0, y0, x1, y1]) - expected).abs().max() <= 1
    assert segment.score == pytest.approx(0.95, abs=1e-4)


def test_the_real_detector_end_to_end(reward):
    """Every segment is one that transformers' own post-processing reports for the same picture given as PIL images."""
    images = pictures(2, (64, 96))
    found = reward.segments(images, [0.0, 0.0])
    processor, detector = reward._processor, reward._detector
    inputs = processor([to_pil(image) for image in images], size={"height": 64, "width": 96}, return_tensors="pt")
    with torch.no_grad():
        outputs = detector(pixel_values=inputs["pixel_values"])
    expected = processor.post_process_instance_segmentation(
        outputs, threshold=0, target_sizes=[(64, 96)] * 2, return_binary_maps=True
    )
    for segments, result in zip(found, expected, strict=True):
        assert len(segments) == len(result["segments_info"]) > 0
        for segment, info in zip(segments, result["segments_info"], strict=True):
            assert segment.label == info["label_id"]
            assert segment.score == pytest.approx(info["score"], abs=1e-5)
            assert (segment.mask != result["segmentation"][info["id"]].bool()).float().mean() < 1e-3
    label = COCO_CLASSES[found[0][0].label]
    entry = metadata({"class": label, "count": 1, "color": "red"})
    scores = reward.score(images, ["", ""], [entry, entry])
    assert scores.shape == (2,) and scores.isfinite().all()


@pytest.mark.parametrize("size", [(64, 96), (50, 31)])
def test_instances_are_those_of_transformers(size):
    """Exactly, for random outputs: empty masks and small ones, and queries of which two classes are likely."""
    generator = torch.Generator().manual_seed(0)
    classes = 3 * torch.randn(2, 12, 81, generator=generator)
    classes[:, :3, 5:7] = 9
    masks = torch.randn(2, 12, 20, 16, generator=generator)
    masks[:, ::4] -= 9
    masks[:, 1, 3, 3] += 99
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    theirs = Mask2FormerImageProcessor().post_process_instance_segmentation(
        outputs, threshold=0.1, target_sizes=[size] * 2, return_binary_maps=True
    )
    for segments, result in zip(instances(outputs, size, [0.1, 0.1]), theirs, strict=True):
        assert 3 < len(segments) < 12
        told = [(info["label_id"], info["score"]) for info in result["segments_info"]]
        assert [(segment.label, segment.score) for segment in segments] == told
        assert torch.equal(torch.stack([segment.mask for segment in segments]), result["segmentation"].bool())
        of_torchvision = masks_to_boxes(result["segmentation"]) + torch.tensor([0, 0, 1, 1])
        assert [segment.box for segment in segments] == [tuple(box) for box in of_torchvision.int().tolist()]


class NumbersRead(TorchDispatchMode):
    """Counts the single numbers that are read from tensors: on an accelerator, each waits for all that is queued there."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("images", [1, 5])
def test_the_device_is_asked_twice_for_any_number_of_images_and_objects(reward, monkeypatch, images):
    """Once for the objects and once for their colours."""
    asked, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: asked.append(tensor.shape) or tolist(tensor))
    monkeypatch.setattr(geneval, "threshold", lambda entry: 0.0)
    include = [{"class": label, "count": 1, "color": "red"} for label in COCO_CLASSES]
    entries = [metadata(*include, tag="colors")] * images
    with NumbersRead() as numbers:
        reward.score(pictures(images, 64), [""] * images, entries)
    assert numbers.count == 0 and len(asked) == 2
    assert asked[0] == (images, 10, 6) and asked[1][0] >= 3 * images


def test_the_real_colour_naming(clip_folder):
    """The classifier and the argmax against the published evaluation's way: PIL crops, one text at a time."""
    namer = ColorNamer(str(clip_folder))
    namer.load()
    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    network.eval()
    image = pictures(1, 96)[0]
    places = [(0, 0, 64, 64), (16, 32, 48, 64), (32, 0, 96, 64)]
    segments = [Segment(16, 0.9, torch.ones(96, 96, dtype=torch.bool), box) for box in places]
    with torch.no_grad():
        texts = [[template.format(color=color, label="dog") for template in TEMPLATES] for color in COLORS]
        rows = [nn.functional.normalize(network.encode_text(open_clip.tokenize(t)), dim=-1).mean(0) for t in texts]
        classifier = torch.stack([row / row.norm() for row in rows])
        crops = torch.stack([transform(to_pil(image).crop(box)) for box in places])
        features = nn.functional.normalize(network.encode_image(crops), dim=-1)
        torch.testing.assert_close(namer._classifier("dog"), classifier, rtol=0, atol=1e-5)
    expected = [COLORS[index] for index in (features @ classifier.T).argmax(-1)]
    assert namer.name_colors([Objects("dog", image, segments, True)]) == [expected]
    assert namer.name_colors([]) == []


def test_the_classes():
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
    assert [COCO_CLASSES[i] for i in (0, 16, 41, 64, 65, 66, 79)] == [
        "person", "dog", "cup", "computer mouse", "tv remote", "computer keyboard", "toothbrush",
    ]  # fmt: skip


@pytest.mark.parametrize("entry", [{}, {"include": []}, {"tag": "colors"}])
def test_metadata_of_another_kind_are_told(reward, entry):
    with pytest.raises(UserError, match="use a GenEval prompt set"):
        reward.score(torch.ones(1, 3, 64, 64), [""], [entry])


def test_an_unknown_class_is_told(reward):
    with pytest.raises(UserError, match="does not know the class 'unicorn'"):
        reward.score(torch.ones(1, 3, 64, 64), [""], [metadata({"class": "unicorn", "count": 1})])


def test_a_detector_that_lacks_weights_is_refused(detector_folder, clip_folder, tmp_path):
    """transformers would fill the gap with random numbers."""
    folder = shutil.copytree(detector_folder, tmp_path / "detector")
    state = load_file(folder / "model.safetensors")
    del state["class_predictor.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its weights, class_predictor.weight"):
        GenEvalReward(detector=str(folder), clip=str(clip_folder)).to(torch.device("cpu"))


def test_a_detector_of_other_classes_is_refused(detector_folder, clip_folder, tmp_path):
    config = Mask2FormerConfig.from_pretrained(detector_folder)
    config.num_labels = 3
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    Mask2FormerImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="knows 3 classes"):
        GenEvalReward(detector=str(tmp_path), clip=str(clip_folder)).to(torch.device("cpu"))


def test_missing_weights_are_told_with_the_command_that_fetches_them(monkeypatch, detector_folder, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("RTDMD_REWARD_CACHE", raising=False)
    with pytest.raises(UserError, match=r"hf download timm/vit_large_patch14_clip_224.openai"):
        GenEvalReward(detector=str(detector_folder)).to(torch.device("cpu"))


def test_both_networks_are_found_in_the_reward_cache(monkeypatch, detector_folder, clip_folder, tmp_path):
    (tmp_path / "geneval").mkdir()
    (tmp_path / "geneval" / "detector").symlink_to(detector_folder)
    (tmp_path / "geneval" / "clip").symlink_to(clip_folder)
    monkeypatch.setenv("RTDMD_REWARD_CACHE", str(tmp_path))
    reward = GenEvalReward()
    reward.to(torch.device("cpu"))
    assert not any(p.requires_grad for network in reward.networks() for p in network.parameters())
