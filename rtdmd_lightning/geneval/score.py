"""GenEval's verdict on a set of detections: the soft score that trains and the strict one that is reported.

Source: METHOD section 6. It is pure logic on `Detection`s, whoever found them.
"""

from dataclasses import dataclass

import numpy as np

from rtdmd_lightning.utils.errors import UserError

MAX_OBJECTS_PER_CLASS = 16
POSITION_THRESHOLD = 0.1
DIRECTION_COSINE = 0.5


@dataclass(frozen=True)
class Detection:
    """One object found in an image: its class, its colour, its box `(x0, y0, x1, y1)` and a confidence in [0, 1]."""

    label: str
    color: str
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class GenEvalScore:
    """`soft` is the mean of the terms, at most 1; `strict` is True where everything is exactly right."""

    soft: float
    strict: bool


def spatial_relations(box: tuple[float, ...], other: tuple[float, ...]) -> set[str]:
    """Which of GenEval's four relations the first box has to the second.

    The offset between the centres is shrunk, per axis, by `POSITION_THRESHOLD` times the summed sizes; a relation holds
    where what is left, over the length of the whole offset, exceeds `DIRECTION_COSINE` (METHOD section 6).
    """
    a, b = np.asarray(box, dtype=float), np.asarray(other, dtype=float)
    offset = (a[:2] + a[2:] - b[:2] - b[2:]) / 2
    sizes = (a[2:] - a[:2]) + (b[2:] - b[:2])
    length = np.linalg.norm(offset)
    if length == 0:
        return set()
    dx, dy = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes, 0) / length
    held = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, cosine in held.items() if cosine > DIRECTION_COSINE}


def geneval_score(detections: list[Detection], metadata: dict) -> GenEvalScore:
    """Score the detections of one image against GenEval metadata.

    The terms, per `include` entry, are METHOD section 6's: the count; a zero if the count is wrong and a colour or a
    position was asked for; else the share of right colours; then, if all of this entry was right so far, its position.
    Raises UserError for metadata without entries, or with a position relative to an entry that does not come before.
    """
    _check_include(metadata["include"])
    terms: list[float] = []
    strict = True
    matched: list[list[Detection] | None] = []
    for entry in metadata["include"]:
        of_class = [detection for detection in detections if detection.label == entry["class"]]
        found = sorted(of_class, key=lambda detection: -detection.score)[:MAX_OBJECTS_PER_CLASS]
        entry_terms, right = _entry_terms(entry, found, matched)
        terms += entry_terms
        strict &= right
        matched.append(found if right else None)
    return GenEvalScore(soft=sum(terms) / len(terms), strict=strict)


def _check_include(include: list[dict]) -> None:
    if not include:
        raise UserError("GenEval metadata must include at least one object")
    for index, entry in enumerate(include):
        if "position" in entry and not 0 <= entry["position"][1] < index:
            raise UserError(
                f"GenEval metadata: the position {entry['position']} must point to an earlier entry of include"
            )


def _entry_terms(entry: dict, found: list[Detection], matched: list) -> tuple[list[float], bool]:
    wanted = entry["count"]
    terms = [1 - abs(wanted - len(found)) / wanted]
    if len(found) != wanted:
        return terms + ([0.0] if "color" in entry or "position" in entry else []), False
    if "color" in entry:
        right_color = sum(detection.color == entry["color"] for detection in found)
        terms.append(1 - abs(wanted - right_color) / wanted)
        if right_color != wanted:
            return terms, False
    if "position" in entry:
        relation, target_index = entry["position"]
        targets = matched[target_index]
        if targets is None:
            return [*terms, 0.0], False
        broken = any(relation not in spatial_relations(a.box, b.box) for a in found for b in targets)
        return [*terms, *([0.0] if broken else []), 1.0], not broken
    return terms, True
