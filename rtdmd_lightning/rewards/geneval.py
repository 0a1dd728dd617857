"""GenEval: are the objects that the prompt names there, in the right number, colour and place? METHOD section 6.

Mask2Former finds them, CLIP names their colours (`geneval_color`), `geneval_score` judges. The published evaluation does the
first with mmdet; here it is the same network and the same weights in transformers. Two details differ by a pixel or so: the
picture is resized to multiples of 32 pixels instead of padded to them, and masks pass through transformers' 384 x 384. As
there, overlapping objects of one class all count (its `max_overlap` is 1 by default: nothing is suppressed).
"""

from typing import Any

import torch
from torch import Tensor, nn

from rtdmd_lightning.geneval.score import MAX_OBJECTS_PER_CLASS, Detection, geneval_score
from rtdmd_lightning.geneval.vocabulary import COCO_CLASSES
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.geneval_color import ColorNamer, Objects
from rtdmd_lightning.rewards.instances import Segment, instances
from rtdmd_lightning.rewards.state import whole_pretrained
from rtdmd_lightning.rewards.weights import Source, loading
from rtdmd_lightning.utils.errors import UserError

DETECTOR_HUB_ID = "facebook/mask2former-swin-small-coco-instance"
SCORE_THRESHOLD = 0.3
COUNTING_SCORE_THRESHOLD = 0.9
SIZE_DIVISOR = 32


class GenEvalReward(Reward):
    """GenEval's soft score (mean of the terms), or with `strict` 1 where everything is exactly right and else 0.

    Args:
        strict: report the strict verdict.
        detector: folder or hub id of the Mask2Former; without it see `weights.locate` (reward `geneval/detector`).
        clip: folder or hub id of an open_clip ViT-L/14, likewise (reward `geneval/clip`).
    """

    differentiable = False

    def __init__(self, strict: bool = False, detector: str | None = None, clip: str | None = None) -> None:
        self.strict = strict
        self.detector = detector
        self.name = "geneval_strict" if strict else "geneval"
        self._colors = ColorNamer(clip)

    def sources(self) -> list[Source]:
        return [Source("geneval/detector", DETECTOR_HUB_ID, self.detector), self._colors.source()]

    def load(self) -> None:
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        source = self.sources()[0].locate()
        with loading("geneval/detector", source):
            self._processor: Any = AutoImageProcessor.from_pretrained(source)
            self._detector: Any = whole_pretrained(Mask2FormerForUniversalSegmentation, self.name, source)
        classes = self._detector.config.num_labels
        if classes != len(COCO_CLASSES):
            raise UserError(
                f"geneval: {source} knows {classes} classes; a COCO instance detector, which knows 80, is needed"
            )
        self._colors.load()

    def networks(self) -> list[nn.Module]:
        return [self._detector, *self._colors.networks()]

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        for entry in metadata:
            check_metadata(entry)
        images = images.float().clamp(0, 1)
        with torch.autocast(images.device.type, enabled=False):
            segments = self.segments(images, [threshold(entry) for entry in metadata])
            found = [objects(image, seen, entry) for image, seen, entry in zip(images, segments, metadata, strict=True)]
            colors = iter(self._colors.name_colors([group for groups in found for group in groups]))
        verdicts = [
            geneval_score([each for group in groups for each in detections(group, next(colors))], entry)
            for groups, entry in zip(found, metadata, strict=True)
        ]
        return torch.tensor([float(v.strict) if self.strict else v.soft for v in verdicts], device=images.device)

    def segments(self, images: Tensor, thresholds: list[float]) -> list[list[Segment]]:
        """What the detector sees in each image with more than that image's confidence, in no order."""
        height, width = images.shape[-2:]
        size = dict(zip(("height", "width"), self._detector_size(height, width), strict=True))
        pixels = self._processor(list(images), size=size, do_rescale=False, return_tensors="pt")
        outputs = self._detector(pixels["pixel_values"].to(images.device))
        return instances(outputs, (height, width), thresholds)

    def _detector_size(self, height: int, width: int) -> tuple[int, int]:
        """The processor's own size (shorter side 800, longer at most 1333), to the nearest multiples of 32."""
        size = self._processor.size
        scale = min(size["shortest_edge"] / min(height, width), size["longest_edge"] / max(height, width))
        tall, wide = (max(1, round(length * scale / SIZE_DIVISOR)) * SIZE_DIVISOR for length in (height, width))
        return tall, wide


def objects(image: Tensor, segments: list[Segment], metadata: dict) -> list[Objects]:
    """What is in an image of each class that matters: the surest ones first, and whether their colour was asked for."""
    colored = {entry["class"] for entry in metadata["include"] if "color" in entry}
    groups = []
    for label in {entry["class"]: None for entry in metadata["include"]}:
        of_class = [segment for segment in segments if COCO_CLASSES[segment.label] == label]
        surest = sorted(of_class, key=lambda segment: -segment.score)[:MAX_OBJECTS_PER_CLASS]
        groups.append(Objects(label, image, surest, label in colored))
    return groups


def detections(group: Objects, colors: list[str]) -> list[Detection]:
    """What is judged of some objects."""
    return [
        Detection(group.label, color, segment.box, segment.score)
        for segment, color in zip(group.segments, colors, strict=True)
    ]


def threshold(metadata: dict) -> float:
    """Confidence above which an object counts: stricter for counting prompts, lest doubtful ones be counted."""
    return COUNTING_SCORE_THRESHOLD if metadata["tag"] == "counting" else SCORE_THRESHOLD


def check_metadata(metadata: dict) -> None:
    """Raises UserError for metadata that are not GenEval's, or that name a class the detector does not know."""
    missing = {"tag", "include"} - metadata.keys()
    if missing:
        raise UserError(f"geneval: the prompt's metadata lack {sorted(missing)}; use a GenEval prompt set")
    for entry in metadata["include"]:
        if entry["class"] not in COCO_CLASSES:
            raise UserError(f"geneval: the detector does not know the class {entry['class']!r}; it knows COCO's 80")
