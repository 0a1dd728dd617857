"""Which samples a cycle's updates use: every boundary of every rollout comes, each equally often."""

from collections import Counter

import torch

from rtdmd_lightning.modules.cycle import Update, draw_in_turn, draw_shared

STOPS, BATCHES, RATIO, CYCLES = 4, 3, 10, 600


def cycles(draw, batches, **options):
    for seed in range(CYCLES):
        yield draw(torch.Generator().manual_seed(seed), STOPS, batches, RATIO, **options)


def equally_often(drawn: Counter, over: list) -> bool:
    """Within five standard deviations of a binomial count."""
    share, total = 1 / len(over), drawn.total()
    spread = (total * share * (1 - share)) ** 0.5
    return drawn.keys() == set(over) and all(abs(count - total * share) < 5 * spread for count in drawn.values())


def test_of_shared_rollouts_a_boundary_is_used_once_in_a_cycle_and_all_equally_often():
    boundaries = [Update(batch, stop) for batch in range(BATCHES) for stop in range(1, STOPS + 1)]
    of_fake, of_generator = Counter(), Counter()
    for fake_updates, generator_update in cycles(draw_shared, BATCHES):
        assert len(set(fake_updates)) == len(fake_updates) == RATIO
        of_fake.update(fake_updates)
        of_generator[generator_update] += 1
    assert equally_often(of_fake, boundaries)
    assert equally_often(of_generator, boundaries)


def test_rollouts_of_their_own_stop_anywhere_and_the_generators_takes_the_last_prompts():
    of_fake, of_generator = Counter(), Counter()
    for fake_updates, generator_update in cycles(draw_in_turn, RATIO, random_stop=True):
        assert [update.batch for update in fake_updates] == list(range(RATIO))
        assert generator_update.batch == RATIO - 1
        of_fake.update(update.stop for update in fake_updates)
        of_generator[generator_update.stop] += 1
    assert equally_often(of_fake, [1, 2, 3, 4])
    assert equally_often(of_generator, [1, 2, 3, 4])


def test_without_random_stops_every_rollout_goes_to_the_end():
    fake_updates, generator_update = draw_in_turn(torch.Generator(), STOPS, RATIO, RATIO, random_stop=False)
    assert {update.stop for update in [*fake_updates, generator_update]} == {STOPS}
