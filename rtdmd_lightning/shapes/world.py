"""The toy world: coloured shapes on a plain ground, described the way GenEval describes photographs.

An image is 32x32. Up to four objects stand in the four quadrants, each at a random place and of a random size inside
its own quadrant, so objects never touch. No training image shows a colour-shape pair of `UNSEEN_PAIRS`.
"""

from dataclasses import dataclass

import numpy as np

from rtdmd_lightning.geneval.score import spatial_relations

IMAGE_SIZE = 32
QUADRANT = IMAGE_SIZE // 2
SHAPES = ("circle", "square", "triangle", "cross")
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.14, 0.14),
    "green": (0.12, 0.62, 0.20),
    "blue": (0.14, 0.26, 0.86),
    "yellow": (0.95, 0.80, 0.10),
    "purple": (0.58, 0.16, 0.66),
}
UNSEEN_PAIRS = frozenset({("yellow", "cross"), ("purple", "triangle")})
RADIUS_RANGE = (4.5, 6.0)
GROUND_RANGE = (0.84, 0.96)
MARGIN = 1.0


@dataclass(frozen=True)
class Placed:
    """One object of a scene: centre and radius in pixels, y pointing down."""

    shape: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        return (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows: its objects and the grey level of its ground."""

    objects: tuple[Placed, ...]
    ground: float


def sample_scene(metadata: dict, rng: np.random.Generator, *, allow_unseen: bool = False) -> Scene:
    """A random scene that fulfils `metadata` (GenEval schema: `include` entries with class, count, color, position).

    Colours that the prompt leaves open are random; with `allow_unseen=False` they avoid `UNSEEN_PAIRS`.
    Raises ValueError where no arrangement is found, which means that the metadata contradicts itself.
    """
    wanted = [(entry, index) for index, entry in enumerate(metadata["include"]) for _ in range(entry["count"])]
    if not 1 <= len(wanted) <= 4:
        raise ValueError(f"a scene holds one to four objects, {metadata['prompt']!r} asks for {len(wanted)}")
    for _ in range(1000):
        quadrants = rng.permutation(4)[: len(wanted)]
        placed = [
            _place(entry, quadrant, rng, allow_unseen) for (entry, _), quadrant in zip(wanted, quadrants, strict=True)
        ]
        groups = [index for _, index in wanted]
        if _relations_hold(metadata["include"], placed, groups):
            return Scene(tuple(placed), ground=float(rng.uniform(*GROUND_RANGE)))
    raise ValueError(f"no arrangement of {metadata['prompt']!r} fulfils its positions")


def _place(entry: dict, quadrant: int, rng: np.random.Generator, allow_unseen: bool) -> Placed:
    shape = entry["class"]
    colors = (
        [entry["color"]]
        if "color" in entry
        else [color for color in COLORS if allow_unseen or (color, shape) not in UNSEEN_PAIRS]
    )
    radius = rng.uniform(*RADIUS_RANGE)
    reach = QUADRANT / 2 - MARGIN - radius
    row, column = divmod(int(quadrant), 2)
    x = (column + 0.5) * QUADRANT + rng.uniform(-reach, reach)
    y = (row + 0.5) * QUADRANT + rng.uniform(-reach, reach)
    return Placed(shape, colors[rng.integers(len(colors))], float(x), float(y), float(radius))


def _relations_hold(include: list[dict], placed: list[Placed], groups: list[int]) -> bool:
    for obj, group in zip(placed, groups, strict=True):
        if "position" not in include[group]:
            continue
        relation, target = include[group]["position"]
        others = [other for other, other_group in zip(placed, groups, strict=True) if other_group == target]
        if any(relation not in spatial_relations(obj.box, other.box) for other in others):
            return False
    return True
