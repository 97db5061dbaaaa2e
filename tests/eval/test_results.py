"""What is read of a file of results must be there and of its kind: whatever the file holds, one sentence or a page."""

import copy
import json

import pytest

from gla_jax.eval.report.compare import compare, comparison_html, comparison_tables
from gla_jax.eval.results import read_results, results, write_results
from gla_jax.eval.runner import Run, measure, open_benchmark
from gla_jax.eval.schema import ANY_KEY, Number, first_fault
from gla_jax.support.errors import UserError
from tests.eval import trees
from tests.eval.fakes import ColourSegmenter


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    dataset, row = open_benchmark("folder", trees.folder(folder / "mine", 2, [0, 1, 255]))
    return results(measure(Run(dataset, row, "gla", ColourSegmenter(row.config("gla")), folder / "out")))


def places(value, path=()):
    """Paths of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(content, path, new):
    """A copy with another value at a path, or without it where new is Ellipsis."""
    other = copy.deepcopy(content)
    inside = other
    for key in path[:-1]:
        inside = inside[key]
    if new is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = new
    return other


OTHERS = (..., None, True, -1, 1e999, 10**400, "x", "\ud800", [], {"x": "x"}, [[]])


def test_a_key_that_lacks_or_is_of_another_kind_gets_a_sentence(content, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    write_results(whole, content)
    assert read_results(whole) == content
    messages = []
    for path in places(content):
        for new in OTHERS:
            (tmp_path / "results.json").write_text(json.dumps(changed(content, path, new)))
            try:
                comparison = compare(whole, tmp_path)
                comparison_tables(comparison)
                comparison_html(comparison).encode()
            except UserError as error:
                messages.append(str(error))
    assert len(messages) > 400
    assert [text for text in messages if "\n" in text or not text.endswith(".")] == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('{"format": "gla-jax results 2", "figures": {"miou": NaN}}', "it holds NaN"),
        ('{"format": "gla-jax results 2"}', r"are damaged \(version is missing\); run the evaluation again"),
        ('{"format": "something"}', "is not a result file of this program"),
        ("[]", "is not a result file of this program"),
        ("", "is not JSON"),
    ],
)
def test_files_that_hold_no_results_get_a_sentence(tmp_path, text, reason):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=reason):
        read_results(tmp_path)


def test_results_of_the_version_before_are_read(content, tmp_path):
    """They lack warnings, and name a preset after the method whose release has its windows."""
    before = changed(changed(content, ("warnings",), ...), ("protocol", "setting"), "proxyclip")
    write_results(tmp_path, before)
    read = read_results(tmp_path)
    assert (read["warnings"], read["protocol"]["setting"]) == ([], "448-336-112")


@pytest.mark.parametrize(
    ("value", "kind", "fault"),
    [
        ({"a": 1}, {"a": Number(whole=True)}, None),
        ({"a": 1.5}, {"a": Number(whole=True)}, "a is 1.5"),
        ({"a": True}, {"a": Number()}, "a is True"),
        ({"a": {"b": 101}}, {"a": {"b": Number(high=100)}}, "a.b is 101"),
        ({"a": None}, {"a": (None, str)}, None),
        ({"a": 3}, {"a": (None, str)}, "a is 3"),
        ({"a": ["x", 2]}, {"a": [str]}, "a.1 is 2"),
        ({"x": 1, "y": "2"}, {ANY_KEY: Number()}, "y is '2'"),
        ({"a": [1, 2]}, {"a": [Number()] * 3}, "a has 2 items"),
        ({"a": [1, "x"]}, {"a": [Number()] * 2}, "a.1 is 'x'"),
        ({"a": {}}, {"a": [str]}, "a is no list"),
        ([], {"a": str}, "it is no object"),
        ({}, {"a": str}, "a is missing"),
        ({"\ud800": 1}, {ANY_KEY: Number()}, r"'\ud800' is no name"),
    ],
)
def test_faults_by_hand(value, kind, fault):
    assert first_fault(value, kind) == fault
