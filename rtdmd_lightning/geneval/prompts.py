"""GenEval's prompts, drawn by its published rules: the 553 of its test set, and training prompts that are none of them.

The rules are those of djghosh13/geneval, prompts/create_prompts.py. The published test set is what they draw from numpy's
generator with seed 43, repetitions left out, so it is made here instead of downloaded: the same prompts in the same order.

Training prompts are drawn by the same rules in Flow-GRPO's proportions. One that means the same as a test prompt is left
out, also where it names the objects in another order. The test set has all 80 prompts of a single object, so training has none.
"""

import numpy as np

from rtdmd_lightning.geneval.vocabulary import COCO_CLASSES, COLORS, NUMBERS, RELATIONS, TAGS

TEST_SEED = 43
TEST_DRAWS = 100  # of every tag but single_object
TRAINING_SEED = 44
TRAINING_COUNT = 50_000
TRAINING_SHARES = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}
MIRRORED = {"right of": "left of", "below": "above"}


def test_prompts() -> list[dict]:
    """The published test set, in its order: each entry has `tag`, `include`, `prompt`, and where it counts `exclude`."""
    rng = np.random.default_rng(TEST_SEED)
    order = rng.choice(len(COCO_CLASSES), size=len(COCO_CLASSES), replace=False)
    drawn = [_entry("single_object", _a(COCO_CLASSES[i]), [_object(COCO_CLASSES[i])]) for i in order]
    drawn += [draw(tag, rng) for tag in TAGS[1:] for _ in range(TEST_DRAWS)]
    return list({entry["prompt"]: entry for entry in drawn}.values())


def training_prompts(count: int = TRAINING_COUNT, seed: int = TRAINING_SEED) -> list[dict]:
    """`count` prompts that ask for nothing that the test set asks for. Counting has but 160 of those: prompts repeat."""
    held_out = {meaning(entry) for entry in test_prompts()}
    rng = np.random.default_rng(seed)
    shares = np.array(list(TRAINING_SHARES.values())) / sum(TRAINING_SHARES.values())
    tags, prompts = list(TRAINING_SHARES), []
    for tag in (tags[i] for i in rng.choice(len(tags), size=count, p=shares)):
        entry = draw(tag, rng)
        while meaning(entry) in held_out:
            entry = draw(tag, rng)
        prompts.append(entry)
    return prompts


def draw(tag: str, rng: np.random.Generator) -> dict:
    """A random prompt of any tag but single_object. What is drawn when is the published script's, lest the test set change.

    Nobody is coloured: the rules keep "person", COCO's first class, out of the tags with colours.
    """
    if tag == "counting":
        name = COCO_CLASSES[rng.choice(len(COCO_CLASSES))]
        count = int(rng.integers(min(NUMBERS), max(NUMBERS), endpoint=True))
        return _entry(tag, f"{NUMBERS[count]} {_plural(name)}", [_object(name, count)], [_object(name, count + 1)])
    if tag == "colors":
        name = COCO_CLASSES[rng.choice(len(COCO_CLASSES) - 1) + 1]
        color = COLORS[rng.choice(len(COLORS))]
        return _entry(tag, f"{_a(color)} {name}", [_object(name) | {"color": color}])
    if tag == "color_attr":
        a, b = (COCO_CLASSES[i + 1] for i in rng.choice(len(COCO_CLASSES) - 1, size=2, replace=False))
        c, d = (COLORS[i] for i in rng.choice(len(COLORS), size=2, replace=False))
        objects = [_object(a) | {"color": c}, _object(b) | {"color": d}]
        return _entry(tag, f"{_a(c)} {a} and {_a(d)} {b}", objects)
    a, b = (COCO_CLASSES[i] for i in rng.choice(len(COCO_CLASSES), size=2, replace=False))
    if tag == "two_object":
        return _entry(tag, f"{_a(a)} and {_a(b)}", [_object(a), _object(b)])
    assert tag == "position", tag
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    return _entry(tag, f"{_a(a)} {relation} {_a(b)}", [_object(b), _object(a) | {"position": [relation, 0]}])


def meaning(entry: dict) -> tuple:
    """What a prompt asks for: the same for "a cat and a dog" and "a dog and a cat", for "a cat left of a dog" and its mirror."""
    include = entry["include"]
    if entry["tag"] == "position":
        (relation, _), target, placed = include[1]["position"], include[0]["class"], include[1]["class"]
        return (MIRRORED[relation], target, placed) if relation in MIRRORED else (relation, placed, target)
    return tuple(sorted((wanted["class"], wanted["count"], wanted.get("color", "")) for wanted in include))


def _entry(tag: str, content: str, include: list[dict], exclude: list[dict] | None = None) -> dict:
    return {
        "tag": tag,
        "include": include,
        **({"exclude": exclude} if exclude else {}),
        "prompt": f"a photo of {content}",
    }


def _object(name: str, count: int = 1) -> dict:
    return {"class": name, "count": count}


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _plural(name: str) -> str:
    """The published one, which knows no exceptions: "sheeps", "knifes", "buses"."""
    return f"{name}es" if name.endswith("s") else f"{name}s"
