"""Grouping: every image once, whatever comes, and never many in memory."""

from hypothesis import given
from hypothesis import strategies as st

from gla_jax.support.batches import GROUPS_IN_WAITING, grouped


@given(st.lists(st.integers(0, 5)), st.integers(1, 5))
def test_every_item_comes_once_in_groups_of_one_kind(kinds, size):
    items = list(enumerate(kinds))
    groups = [group for group, _ in grouped(iter(items), lambda item: item[1], lambda kind: size)]
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
    for group, _ in grouped(stream(), lambda kind: kind, lambda kind: size):
        assert taken - given_back <= GROUPS_IN_WAITING * size
        given_back += len(group)


@given(st.lists(st.integers(0, 5)), st.integers(1, 5))
def test_all_groups_of_a_kind_share_a_program(kinds, size):
    """A program takes minutes to compile on some devices; a group that stays the only one is not filled up."""
    programs = {}
    for group, room in grouped(iter(kinds), lambda kind: kind, lambda kind: size + kind):
        assert len(group) <= room <= size + group[0]
        programs.setdefault(group[0], []).append((room, len(group)))
    for rooms in programs.values():
        assert len({room for room, _ in rooms}) == 1


def test_one_at_a_time_reads_nothing_ahead():
    stream = iter(range(5))
    groups = grouped(stream, lambda item: item % 2, lambda kind: 1)
    assert next(groups) == ([0], 1)
    assert next(stream) == 1
