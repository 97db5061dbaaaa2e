"""Grouping: every image once, whatever comes, and never many in memory."""

from hypothesis import given
from hypothesis import strategies as st

from gla_jax.support.batches import GROUPS_IN_WAITING, grouped


@given(st.lists(st.integers(0, 5)), st.integers(1, 5))
def test_every_item_comes_once_in_groups_of_one_kind(kinds, size):
    items = list(enumerate(kinds))
    groups = list(grouped(iter(items), lambda item: item[1], size))
    assert sorted(item for group in groups for item in group) == items
    assert all(len({kind for _, kind in group}) == 1 and len(group) <= size for group in groups)
    for kind in set(kinds):
        own = [item for group in groups for item in group if item[1] == kind]
        assert own == sorted(own)


@given(st.lists(st.integers(0, 100), min_size=1), st.integers(1, 4))
def test_few_items_wait(kinds, size):
    taken = 0

    def stream():
        nonlocal taken
        for kind in kinds:
            taken += 1
            yield kind

    given_back = 0
    for group in grouped(stream(), lambda kind: kind, size):
        assert taken - given_back <= GROUPS_IN_WAITING * size
        given_back += len(group)


def test_one_at_a_time_reads_nothing_ahead():
    stream = iter(range(5))
    groups = grouped(stream, lambda item: item % 2, 1)
    assert next(groups) == [0]
    assert next(stream) == 1
