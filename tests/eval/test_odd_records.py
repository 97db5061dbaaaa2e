"""Records that no image can have are as damaged ones: the image is measured again."""

from dataclasses import replace

import pytest

from gla_jax.eval.records import ImageRecord, parse_line

RECORD = ImageRecord(
    "a", (4, 5), (8, 10), ((0, 3, 10, 8), (2, 1, 10, 4)), (0,) * 4, (0,) * 4, (0,) * 4, (0,) * 4, {"read": 0.1}
)


def test_a_record_is_read_as_it_was_written():
    assert parse_line(RECORD.line()) == RECORD
    assert parse_line(replace(RECORD, areas=()).line()) == replace(RECORD, areas=())


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
        {"seconds": {"read": 1e300}},
        {"seconds": {"\ud800": 1.0}},
        {"image_id": 7},
    ],
    ids=str,
)
def test_a_record_that_no_image_can_have_is_damaged(odd):
    assert parse_line(replace(RECORD, **odd).line()) is None
