"""Random numbers belong to (seed, sample index, purpose) and to nothing else."""

import pytest
import torch

from rtdmd_lightning.utils.randomness import SampleRandom, keyed_generator

CPU = torch.device("cpu")


def draws(kind: str, indices, seed: int = 0, purpose: str = "start") -> torch.Tensor:
    random = SampleRandom(seed, indices, CPU)
    return random.normal(purpose, (3, 2)) if kind == "normal" else random.uniform(purpose)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_samples_draw_does_not_depend_on_its_batch(kind):
    """Alone, in any company, in any order, twice in one batch: bit for bit the same."""
    whole = draws(kind, range(12))
    for indices in ([7], [11, 3], [0, 5, 5], list(reversed(range(12)))):
        assert torch.equal(draws(kind, indices), whole[list(indices)])


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_slice_draws_what_its_samples_draw(kind):
    random = SampleRandom(0, [4, 9, 2, 7], CPU)
    part = random[1:3]
    assert list(part.indices) == [9, 2] and part.seed == 0 and part.device == CPU
    whole = draws(kind, [4, 9, 2, 7])
    assert torch.equal(draws(kind, part.indices), whole[1:3])


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_drawing_neither_reads_nor_moves_the_global_generator(kind):
    torch.manual_seed(1)
    first = draws(kind, range(3))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(draws(kind, range(3)), first)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_seed_index_and_purpose_each_make_a_difference(kind):
    base = draws(kind, [3])
    others = [
        draws(kind, [3], seed=1),
        draws(kind, [4]),
        draws(kind, [3], purpose="renoise"),
        draws(kind, [0], seed=3),  # the numbers' places count, not only the numbers
    ]
    assert all((base != other).all() for other in others)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_another_use_of_the_samples_has_numbers_of_its_own(kind):
    random = SampleRandom(0, range(4), CPU).ahead({"start": (3, 2)}, ["start"])
    uses = [random, random.for_use("a"), random.for_use("b")]
    drawn = [use.normal("start", (3, 2)) if kind == "normal" else use.uniform("start") for use in uses]
    assert not any(torch.equal(drawn[one], drawn[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


def test_digits_do_not_run_together():
    """(1, 23) and (12, 3), or an index and a purpose that begins with a digit, are different keys."""
    keys = [(1, 23, "x"), (12, 3, "x"), (1, 2, "3x"), (1, 2, "3/x"), (1, 0, "x"), (10, 0, "x")]
    assert len({keyed_generator(*key).initial_seed() for key in keys}) == len(keys)


def test_the_draws_of_the_first_release():
    """A checkpoint of one release resumes in the next only while these stay as they are."""
    assert keyed_generator(1234, 5, "start").initial_seed() == 5983346626632004973
    random = SampleRandom(1234, [5], CPU)
    torch.testing.assert_close(
        random.normal("start", (3,)), torch.tensor([[-1.2267, 0.6855, -1.1090]]), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(random.uniform("start"), torch.tensor([0.4274]), rtol=0, atol=1e-4)


def test_shapes_and_types():
    random = SampleRandom(0, [1, 2, 3], CPU)
    for tensor, shape in ((random.normal("a", (4, 8, 8)), (3, 4, 8, 8)), (random.uniform("a"), (3,))):
        assert tensor.shape == shape and tensor.dtype == torch.float32
    assert SampleRandom(0, [1], torch.device("meta")).normal("a", (2,)).device.type == "meta"
    assert SampleRandom(0, [1], torch.device("meta")).uniform("a").device.type == "meta"


def test_what_is_drawn_ahead_is_what_would_be_drawn():
    """Also of a slice, and not of another use; what was not drawn ahead is drawn when it is asked for."""
    random = SampleRandom(0, [4, 9, 2], CPU)
    ahead = random.ahead({"start": (3, 2), "level": ()}, ["delta"])
    for some in (ahead, ahead[1:]):
        same = SampleRandom(0, some.indices, CPU)
        assert torch.equal(some.normal("start", (3, 2)), same.normal("start", (3, 2)))
        assert torch.equal(some.normal("level", ()), same.normal("level", ()))
        assert torch.equal(some.uniform("delta"), same.uniform("delta"))
        assert torch.equal(some.uniform("level"), same.uniform("level"))  # a uniform draw of a normal one's name
    assert torch.equal(ahead.for_use("a").normal("start", (3, 2)), random.for_use("a").normal("start", (3, 2)))


def test_uniform_range_and_moments():
    """4000 samples' numbers, each from a generator of its own: deciles filled, neighbours uncorrelated."""
    numbers = draws("uniform", range(4000)).double()
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers, bins=10, min=0, max=1)
    assert ((counts - 400).abs() < 5 * (400 * 0.9) ** 0.5).all()
    assert abs(torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]) < 0.06


def test_normal_moments():
    """Over samples at one place as well as over one sample's places."""
    for numbers in (
        SampleRandom(0, range(4000), CPU).normal("start", (1,)).double().flatten(),
        SampleRandom(0, [17], CPU).normal("start", (4000,)).double().flatten(),
    ):
        assert abs(numbers.mean()) < 0.06
        assert abs(numbers.std() - 1) < 0.05
        assert abs((numbers**3).mean()) < 0.2
        assert abs((numbers**4).mean() - 3) < 0.6
        assert abs(torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]) < 0.06
