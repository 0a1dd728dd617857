"""Prompts of the toy world in GenEval's schema, and the split into training and held-out prompts.

Every prompt is "a [adjective] medium of CONTENT". The adjective and the medium mean nothing; they make enough distinct
prompts that training and held-out sets can be disjoint even for the four single shapes. A prompt is held out when the hash
of its text says so, or when it names a colour-shape pair of `UNSEEN_PAIRS`.
"""

import functools
import hashlib
import itertools

import numpy as np

from rtdmd_lightning.geneval.vocabulary import NUMBERS, RELATIONS, TAGS
from rtdmd_lightning.shapes.world import COLORS, SHAPES, UNSEEN_PAIRS

PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
ADJECTIVES = ("", "clear ", "simple ", "plain ", "neat ", "good ", "fresh ", "tidy ")
MEDIA = ("photo", "picture", "drawing", "painting", "render", "sketch", "print", "icon")
UNSEEN_SHARE = 0.15  # of the held-out prompts of the two tags that name colours


def contents(tag: str) -> list[dict]:
    """Every content of a tag: GenEval metadata whose `prompt` still lacks its prefix."""
    pairs = list(itertools.product(COLORS, SHAPES))
    if tag == "single_object":
        return [_entry(tag, f"a {s}", [{"class": s, "count": 1}]) for s in SHAPES]
    if tag == "two_object":
        return [
            _entry(tag, f"a {a} and a {b}", [{"class": a, "count": 1}, {"class": b, "count": 1}])
            for a, b in itertools.permutations(SHAPES, 2)
        ]
    if tag == "counting":
        return [
            _entry(tag, f"{word} {PLURALS[s]}", [{"class": s, "count": n}], [{"class": s, "count": n + 1}])
            for s in SHAPES
            for n, word in NUMBERS.items()
        ]
    if tag == "colors":
        return [_entry(tag, f"a {c} {s}", [{"class": s, "count": 1, "color": c}]) for c, s in pairs]
    if tag == "position":
        return [
            _entry(tag, f"a {a} {r} a {b}", [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [r, 0]}])
            for r in RELATIONS
            for a, b in itertools.permutations(SHAPES, 2)
        ]
    if tag == "color_attr":
        return [
            _entry(
                tag,
                f"a {c} {a} and a {d} {b}",
                [{"class": a, "count": 1, "color": c}, {"class": b, "count": 1, "color": d}],
            )
            for (c, a), (d, b) in itertools.permutations(pairs, 2)
            if c != d and a != b
        ]
    raise ValueError(f"unknown tag {tag!r}; the tags are {', '.join(TAGS)}")


def _entry(tag: str, content: str, include: list[dict], exclude: list[dict] | None = None) -> dict:
    entry = {"tag": tag, "include": include, "prompt": content}
    return entry | ({"exclude": exclude} if exclude else {})


def prompts(tag: str) -> list[dict]:
    """Every prompt of a tag, as GenEval metadata."""
    prefixes = [f"a {adjective}{medium} of " for adjective in ADJECTIVES for medium in MEDIA]
    return [content | {"prompt": prefix + content["prompt"]} for content in contents(tag) for prefix in prefixes]


@functools.cache
def known_words() -> frozenset[str]:
    """All words of all prompts."""
    return frozenset(word for tag in TAGS for metadata in prompts(tag) for word in metadata["prompt"].split())


def names_unseen_pair(metadata: dict) -> bool:
    """Does the prompt ask for a colour-shape pair that training never shows?"""
    return any((entry.get("color"), entry["class"]) in UNSEEN_PAIRS for entry in metadata["include"])


def is_held_out(metadata: dict) -> bool:
    """Half of all prompts, chosen by a hash of the text, and all that name an unseen pair."""
    return names_unseen_pair(metadata) or hashlib.sha256(metadata["prompt"].encode()).digest()[0] % 2 == 0


@functools.cache  # of 21,504 prompts
def _split(tag: str) -> tuple[list[dict], list[dict], list[dict]]:
    """A tag's training prompts, its held-out prompts without an unseen pair, and those with one."""
    every = prompts(tag)
    training = [metadata for metadata in every if not is_held_out(metadata)]
    unseen = [metadata for metadata in every if names_unseen_pair(metadata)]
    seen = [metadata for metadata in every if is_held_out(metadata) and not names_unseen_pair(metadata)]
    return training, seen, unseen


def training_prompts(tag: str) -> list[dict]:
    return list(_split(tag)[0])


def held_out_prompts(per_tag: int, *, seed: int = 0) -> list[dict]:
    """`per_tag` distinct held-out prompts of every tag, in the order of `TAGS`; a fixed choice for a seed.

    Raises ValueError where a tag has fewer held-out prompts than asked for.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for tag in TAGS:
        _, seen, unseen = _split(tag)
        n_unseen = round(UNSEEN_SHARE * per_tag) if unseen else 0
        if per_tag - n_unseen > len(seen):
            raise ValueError(f"tag {tag!r} has only {len(seen)} held-out prompts, {per_tag - n_unseen} were asked for")
        chosen += [seen[i] for i in rng.permutation(len(seen))[: per_tag - n_unseen]]
        chosen += [unseen[i] for i in rng.permutation(len(unseen))[:n_unseen]]
    return chosen
