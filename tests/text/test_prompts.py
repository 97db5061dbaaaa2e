"""Class names and templates as users write them: what is read, what is warned of, what is refused."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.support.errors import ClassesError
from gla_jax.text.prompts import (
    average_templates,
    background_name,
    check_enough,
    check_templates,
    clean_text,
    imagenet_templates,
    parse_classes,
    read_lines,
)


def test_synonyms_are_queries_of_one_class():
    classes = parse_classes(["cat; tabby", "grass", " sky ;  clouds  at dusk"])
    assert classes.names == ("cat", "grass", "sky")
    assert classes.prompts == ("cat", "tabby", "grass", "sky", "clouds at dusk")
    assert classes.class_of_prompt == (0, 0, 1, 2, 2)


def test_commas_that_look_like_synonyms_warn():
    with pytest.warns(UserWarning, match="synonyms are separated by semicolons"):
        assert parse_classes(["cat, tabby", "dog"]).prompts == ("cat, tabby", "dog")


def test_commas_of_the_only_text_separate_classes():
    """One class would take every pixel, so a list between commas cannot be meant as one name."""
    with pytest.warns(UserWarning, match="read as 3 classes: 'sand', 'tall grass', 'water'"):
        assert parse_classes(["sand,tall grass , water,"]).names == ("sand", "tall grass", "water")
    assert parse_classes(["sand; dune, beach"]).prompts == ("sand", "dune, beach")


@pytest.mark.parametrize("words", [["wood", "plank"], ["plank"], "plank", ("wood", " plank ")])
def test_a_mapping_holds_the_synonyms_of_its_names(words):
    classes = parse_classes({"wood": words, "sky": []})
    assert classes.names == ("wood", "sky")
    assert classes.prompts == ("wood", "plank", "sky")
    assert classes.class_of_prompt == (0, 0, 1)


def test_bytes_that_are_not_utf8_are_latin1():
    """As Python hands over what a terminal in Latin-1 types; a name in UTF-8 beside it stays."""
    with pytest.warns(UserWarning, match="not UTF-8 is read as Latin-1: 'gräser'"):
        assert (
            parse_classes([b"gr\xe4ser".decode("utf-8", "surrogateescape"), "gr\u00e4ser \u6728"]).names[0] == "gräser"
        )


def test_long_names_are_cut_in_messages():
    with pytest.raises(ClassesError, match="given twice") as caught:
        parse_classes(["x" * 10_000, "x" * 10_000])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("typed", "cleaned"),
    [
        ("a  wooden\tchair", "a wooden chair"),
        ("\u201ccurly\u201d \u2018quotes\u2019", "\"curly\" 'quotes'"),
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("\ufb01sh and \ufb02oor", "fish and floor"),
        ("\uff26\uff35\uff2c\uff2c width", "FULL width"),
        ("no\u00a0break", "no break"),
        ("soft\u00adhyphen", "soft\u00adhyphen"),
        ("cafe\u0301", "caf\u00e9"),
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("\U0001f3ef temple", "\U0001f3ef temple"),
        ("\u65e5\u672c", "\u65e5\u672c"),
    ],
)
def test_prompts_are_cleaned_as_clip_cleans_them(typed, cleaned):
    """What ftfy, unescaping twice and collapsing spaces give: the steps before OpenAI's tokenizer."""
    assert clean_text(typed) == cleaned
    assert parse_classes([typed, "other"]).names[0] == " ".join(typed.split())  # shown as it was typed


def test_one_class_for_every_pixel_is_refused():
    for classes, background in (
        (["cat"], None),
        (["cat; tabby"], None),
        (["cat"], "cat"),
        (["cat"], "floor"),  # a softmax over one prompt is 1 everywhere
    ):
        with pytest.raises(ClassesError, match="the class 'cat' alone would take every pixel; name what else"):
            check_enough(parse_classes(classes), background)
    check_enough(parse_classes(["cat; tabby"]), "floor")
    check_enough(parse_classes(["cat", "floor"]))


@pytest.mark.parametrize("pair", [("tabby", "tabby"), ("tabby", "Tabby"), ("a & b", "a &amp; b"), ("a's", "a’s")])
def test_a_word_of_two_classes_warns(pair):
    """Words that the text tower reads alike are one, so the second class could get no pixel."""
    with pytest.warns(UserWarning, match=f"'?{pair[1]}'? stands in two classes; 'cat' takes its pixels"):
        parse_classes([f"cat; {pair[0]}", f"tiger; {pair[1]}"])


@pytest.mark.parametrize("typed", ["bell\x07", "\x1b[31mbell\x1b[0m", "be\0ll", "\x7fbell"])
def test_control_characters_are_left_out_of_names(typed):
    """A terminal would obey them, in tables and in progress lines; CLIP's cleaning leaves them out, too."""
    assert clean_text(typed) == "bell"
    with pytest.warns(UserWarning, match="with control characters is read without them: 'bell'"):
        assert parse_classes([typed, "dog"]).names == ("bell", "dog")


def test_commas_in_the_synonyms_of_a_mapping_warn():
    with pytest.warns(UserWarning, match="'tabby, kitten' is read as one name; synonyms are separated by semicolons"):
        parse_classes({"cat": "tabby, kitten", "dog": []})


def test_a_background_is_read_as_a_class_name_is():
    assert background_name(None) is None
    assert background_name(" the\u00a0rest ") == "the rest"  # so that it finds itself among the classes
    for wrong, reason in ((3, "not a text"), ("", "empty name"), ("\u200b", "empty name"), (["cat"], "not a text")):
        with pytest.raises(ClassesError, match=reason):
            background_name(wrong)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "there are no classes"),
        (["cat", ""], "has an empty name"),
        (["cat;"], "has an empty name"),
        (["cat", "cat; tabby"], "given twice"),
        (["cat", "\u00ad"], "has an empty name"),
        (["cat", "\u200b"], "has an empty name"),
        (None, "the classes are None; give a list"),
        (3, "the classes are 3; give a list"),
        ({"cat": None, "dog": []}, "the synonyms of 'cat' are None; give a list"),
        ({"cat": 3}, "the synonyms of 'cat' are 3; give a list"),
        ({"cat": [""]}, "has an empty name"),
        ({"cat": [3]}, "class name 3 is not a text"),
        (["cat", None], "class name None is not a text"),
        ([b"cat", "dog"], "is not a text"),
        ("cat", "put each class into a list"),
        (["\ud83c", "dog"], "half of a character"),
    ],
)
def test_unusable_classes_are_one_sentence(lines, reason):
    with pytest.raises(ClassesError, match=reason):
        parse_classes(lines)


def test_more_classes_than_a_picture_tells_apart_are_refused():
    """Their indices would wrap, and class 65536 become class 0."""
    with pytest.raises(ClassesError, match="there are 65,536 classes; index PNGs tell 65,535 apart"):
        parse_classes([f"class {index}" for index in range(65536)])


def test_a_file_has_one_class_a_line(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeff# animals\ncat; tabby\n\n  grass \r\n  # dog\n", encoding="utf-8")
    assert read_lines(path, "classes") == ["cat; tabby", "grass"]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "is empty"), (b"\n \n# sky\n", "is empty"), (b"\xff\xfe\x00", "UTF-8")]
)
def test_an_unusable_file_is_named(tmp_path, content, reason):
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(ClassesError, match=f"classes.txt.*{reason}"):
        read_lines(path, "classes")
    with pytest.raises(ClassesError, match="cannot be read"):
        read_lines(tmp_path / "none.txt", "classes")
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(ClassesError, match="is not a file"):
            read_lines(endless, "classes")


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
