"""Class names and templates as users write them: what is read, what is warned of, what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.support.errors import ClassesError
from gla_jax.text.prompts import average_templates, check_templates, imagenet_templates, parse_classes, read_lines


def test_synonyms_are_queries_of_one_class():
    classes = parse_classes(["cat; tabby", "grass", " sky ;  clouds  at dusk"])
    assert classes.names == ("cat", "grass", "sky")
    assert classes.prompts == ("cat", "tabby", "grass", "sky", "clouds at dusk")
    assert classes.class_of_prompt == (0, 0, 1, 2, 2)


def test_commas_that_look_like_synonyms_warn():
    with pytest.warns(UserWarning, match="synonyms are parted by semicolons"):
        assert parse_classes(["cat, tabby"]).prompts == ("cat, tabby",)


def test_a_word_of_two_classes_warns():
    with pytest.warns(UserWarning, match="'tabby' stands in two classes; 'cat' takes its pixels"):
        parse_classes(["cat; tabby", "tiger; tabby"])


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "there are no classes"),
        (["cat", ""], "has an empty name"),
        (["cat;"], "has an empty name"),
        (["cat", "cat; tabby"], "given twice"),
    ],
)
def test_unusable_classes_are_one_sentence(lines, reason):
    with pytest.raises(ClassesError, match=reason):
        parse_classes(lines)


def test_a_file_has_one_class_a_line(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffcat; tabby\n\n  grass \r\n", encoding="utf-8")
    assert read_lines(path, "classes") == ["cat; tabby", "grass"]


@pytest.mark.parametrize(("content", "reason"), [(b"", "is empty"), (b"\n \n", "is empty"), (b"\xff\xfe\x00", "UTF-8")])
def test_an_unusable_file_is_named(tmp_path, content, reason):
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(ClassesError, match=f"classes.txt.*{reason}"):
        read_lines(path, "classes")
    with pytest.raises(ClassesError, match="cannot be read"):
        read_lines(tmp_path / "none.txt", "classes")


def test_templates_hold_the_name_once():
    assert check_templates(["a photo of a {}."]) == ("a photo of a {}.",)
    for templates, reason in (
        ([], "no prompt templates"),
        (["a photo"], "does not hold"),
        (["{} {}"], "does not hold"),
    ):
        with pytest.raises(ClassesError, match=reason):
            check_templates(templates)


def test_there_are_clips_80_templates():
    templates = imagenet_templates()
    assert len(templates) == len(set(templates)) == 80
    assert check_templates(templates) == templates
    assert {"a photo of a {}.", "itap of a {}.", "a tattoo of the {}."} <= set(templates)


def test_templates_are_averaged_as_directions():
    """A long feature must not outweigh a short one: [3 0] and [0 1] meet halfway."""
    bank = average_templates(jnp.array([[[3.0, 0.0], [0.0, 1.0]]]))
    np.testing.assert_allclose(bank, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
