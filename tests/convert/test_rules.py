import re

import jax
import numpy as np
import pytest

from gla_jax.convert import clip, dino
from gla_jax.convert.rules import TRANSFORMS, Drop, Rule, fit, route
from gla_jax.support.errors import ConversionError


def apply_rules(state, table, expected):
    routed, records = route(state, table)
    return fit(routed, expected), records


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


TABLE = (
    Rule(r"embed", "table"),
    Rule(r"blocks\.(?P<i>\d+)\.qkv", ("block_{i}/q", "block_{i}/k", "block_{i}/v"), "linear thirds"),
    Drop(r"step", "a counter"),
)
STATE = {"embed": numbers(4, 2), "blocks.0.qkv": numbers(6, 2), "blocks.1.qkv": numbers(6, 2) + 100, "step": numbers()}
SQUARE = jax.ShapeDtypeStruct((2, 2), np.float32)
EXPECTED = {
    "table": jax.ShapeDtypeStruct((4, 2), np.float32),
    **{f"block_{i}": dict.fromkeys("qkv", SQUARE) for i in range(2)},
}


def without(name: str) -> dict[str, np.ndarray]:
    return {key: tensor for key, tensor in STATE.items() if key != name}


def test_tensors_go_where_the_table_says():
    params, records = apply_rules(STATE, TABLE, EXPECTED)
    np.testing.assert_array_equal(params["table"], STATE["embed"])
    np.testing.assert_array_equal(params["block_1"]["k"], [[104, 106], [105, 107]])
    assert records["blocks.0.qkv"] == {"targets": ["block_0/q", "block_0/k", "block_0/v"]}
    assert records["step"] == {"dropped": "a counter"}
    assert records.keys() == STATE.keys()


def test_halves_become_float32():
    params, _ = apply_rules({**STATE, "embed": STATE["embed"].astype(np.float16)}, TABLE, EXPECTED)
    assert params["table"].dtype == np.float32


def test_the_same_table_runs_on_shapes_alone():
    shapes = jax.eval_shape(lambda state: apply_rules(state, TABLE, EXPECTED)[0], STATE)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), EXPECTED
    )


@pytest.mark.parametrize(
    ("state", "table", "named"),
    [
        pytest.param({**STATE, "head.weight": numbers(2)}, TABLE, ["no rule covers head.weight"], id="unmatched"),
        pytest.param(STATE, (*TABLE, Drop("emb.*", "again")), ["more than one rule covers embed"], id="two rules"),
        pytest.param(
            {**STATE, "table": numbers(4, 2)},
            (*TABLE, Rule("table", "table")),
            ["two tensors give table", "embed and table"],
            id="set twice",
        ),
        pytest.param(without("embed"), TABLE, ["nothing in the source gives table"], id="never set"),
        pytest.param(
            {**STATE, "embed": numbers(4, 3)}, TABLE, ["embed gives table the shape [4 3]", "[4 2]"], id="other shape"
        ),
        pytest.param(
            {**STATE, "blocks.2.qkv": numbers(6, 2)}, TABLE, ["no place for blocks.2.qkv (block_2/q)"], id="no place"
        ),
        pytest.param({**STATE, "blocks.1.qkv": numbers(7, 2)}, TABLE, ["blocks.1.qkv has shape [7 2]"], id="no thirds"),
        pytest.param({}, TABLE, ["no tensors"], id="empty"),
    ],
)
def test_a_table_fails_rather_than_guesses(state, table, named):
    with pytest.raises(ConversionError) as caught:
        apply_rules(state, table, EXPECTED)
    assert all(words in str(caught.value) for words in named)


def test_many_names_are_counted():
    state = {**STATE, **{f"extra.{i}": numbers(1) for i in range(5)}}
    with pytest.raises(ConversionError, match=r"extra\.0, extra\.1, extra\.2 and 2 more"):
        apply_rules(state, TABLE, EXPECTED)


@pytest.mark.parametrize(
    ("name", "tensor", "expected"),
    [
        ("keep", [[1, 2]], [[[1, 2]]]),
        ("linear", [[1, 2, 3]], [[[1], [2], [3]]]),
        ("thirds", [1, 2, 3, 4, 5, 6], [[1, 2], [3, 4], [5, 6]]),
        ("linear thirds", [[1, 2], [3, 4], [5, 6]], [[[1], [2]], [[3], [4]], [[5], [6]]]),
        ("patches", [[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]], [[[1, 5], [2, 6], [3, 7], [4, 8]]]),
        ("vector", [[[1, 2]]], [[1, 2]]),
        ("rows", [[[1, 2], [3, 4]]], [[[1, 2], [3, 4]]]),
        ("first and rest", [[[1, 2], [3, 4], [5, 6]]], [[1, 2], [[3, 4], [5, 6]]]),
    ],
)
def test_transforms(name, tensor, expected):
    parts = TRANSFORMS[name](np.array(tensor))
    assert [part.tolist() for part in parts] == expected


@pytest.mark.parametrize("table", [clip.RULES, dino.DINO_RULES, dino.DINOV2_RULES], ids=["clip", "dino", "dinov2"])
def test_every_row_of_a_family_is_sound(table):
    assert all(isinstance(row, Drop) or row.transform in TRANSFORMS for row in table)
    assert all(row.reason for row in table if isinstance(row, Drop))
    for row in table:
        groups = re.compile(row.source).groupindex.keys()
        templates = [] if isinstance(row, Drop) else np.atleast_1d(row.targets).tolist()
        assert all(set(re.findall(r"{(\w+)}", template)) <= groups for template in templates)
