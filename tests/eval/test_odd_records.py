"""Records that no image can have are as damaged ones: the image is measured again."""

from dataclasses import replace

import pytest

from gla_jax.eval.records import ImageRecord, parse_line

RECORD = ImageRecord(
    "a", (4, 5), (8, 10), ((0, 3, 10, 8), (2, 1, 10, 4)), (0,) * 4, (0,) * 4, (0,) * 4, (0,) * 4, {"read": 0.1}
)


def test_a_record_is_read_as_it_was_written():
    assert parse_line(RECORD.line()) == RECORD
    for other in ({"areas": ()}, {"one_key": (1, 2)}):
        assert parse_line(replace(RECORD, **other).line()) == replace(RECORD, **other)


@pytest.mark.parametrize(
    "odd",
    [
        {"size": (1, 1)},
        {"size": (0, 5)},
        {"areas": ((0, 3, 2, 8),)},  # more in both than in one
        {"areas": ((0, 3, 10, 2),)},
        {"areas": ((0, 1, 11, 1), (1, 1, 10, 1))},  # more than the image has
        {"areas": ((0, 1, 1, 1), (0, 1, 1, 1))},
        {"areas": ((0, -1, 1, 1),)},
        {"areas": ((0, 1, 1, 1.5),)},
        {"one_key": (3, 2)},
        {"one_key": (-1, 2)},
        {"one_key": (1,)},
        {"seconds": {"read": 1e300}},
        {"seconds": {"\ud800": 1.0}},
        {"image_id": 7},
    ],
    ids=str,
)
def test_a_record_that_no_image_can_have_is_damaged(odd):
    assert parse_line(replace(RECORD, **odd).line()) is None
