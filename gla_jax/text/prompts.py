"""Class names as users write them, and the prompt templates around them."""

import html
import re
import stat
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from gla_jax.support.arrays import Array, Float, Int, l2_normalize, typed
from gla_jax.support.errors import ClassesError
from gla_jax.support.places import place

SEPARATOR = ";"
ENTITY = re.compile(r"&(?:amp;)*(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|[A-Za-z]\w{1,30});")
MAX_SHOWN = 60  # characters of a name in messages
MAX_FILE_BYTES = 2**24
MAX_CLASSES = 2**16 - 1  # index PNGs have 16 bits, and of labels the last value is ignored


@dataclass(frozen=True)
class Classes:
    """Class names [L], the prompts of all of them [Q] in order, and the class of each prompt [Q]."""

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    class_of_prompt: tuple[int, ...]


def parse_classes(classes: Iterable[str] | Mapping[str, str | Sequence[str]]) -> Classes:
    """Classes from one text each, "cat; tabby": semicolons separate synonyms, the first one names the class.

    A mapping holds the further synonyms of each name, as a list or as such a text. One text alone with commas and no
    semicolon is a list of classes. Warns of that, of other commas that seem to separate synonyms and of a prompt of
    two classes, compared as the text tower reads them. Raises ClassesError for no classes, an empty name, a name that
    occurs twice and a text where a list belongs.
    """
    if isinstance(classes, str | bytes):  # else its letters would be the classes
        raise ClassesError(f"the classes are one text, {quote(classes)}; put each class into a list: ['sand', 'sky'].")
    if not isinstance(classes, Iterable):
        raise ClassesError(f"the classes are {quote(classes)}; give a list: ['sand', 'sky'].")
    if isinstance(classes, Mapping):
        for name, words in classes.items():
            if not isinstance(words, Iterable) or isinstance(words, bytes):
                raise ClassesError(f"the synonyms of {quote(name)} are {quote(words)}; give a list, or [] for none.")
        rows = [
            list(dict.fromkeys(map(_prompt, [name, *(_split(words) if isinstance(words, str) else words)])))
            for name, words in classes.items()
        ]
    else:
        rows = [list(map(_prompt, _split(line))) for line in _without_commas(list(classes))]
    class_of: dict[str, int] = {}  # of each prompt
    names: dict[str, None] = {}
    for index, synonyms in enumerate(rows):
        name = synonyms[0]
        if not all(map(_is_visible, synonyms)):
            line = f"{SEPARATOR} ".join(synonyms)
            raise ClassesError(f"the class {quote(line)} has an empty name; write synonyms as 'cat; tabby'.")
        if name in names:
            raise ClassesError(f"the class {quote(name)} is given twice; name it once, then its synonyms.")
        names[name] = None
        if "," in synonyms[-1] and len(synonyms) <= 1 + isinstance(classes, Mapping):
            warnings.warn(
                f"{quote(synonyms[-1])} is read as one name; synonyms are separated by semicolons", stacklevel=2
            )
        for word in synonyms:
            # The tokenizers take lower case: prompts that differ in nothing else have the same features.
            read = clean_text(word).lower()
            if class_of.setdefault(read, index) != index:
                first = rows[class_of[read]][0]
                warnings.warn(f"{quote(word)} stands in two classes; {quote(first)} takes its pixels", stacklevel=2)
    if not names:
        raise ClassesError("there are no classes; name at least one.")
    if len(names) > MAX_CLASSES:
        raise ClassesError(f"there are {len(names):,} classes; index PNGs tell {MAX_CLASSES:,} apart, so name fewer.")
    indices = tuple(index for index, synonyms in enumerate(rows) for _ in synonyms)
    return Classes(tuple(names), tuple(word for synonyms in rows for word in synonyms), indices)


def _split(line: Any) -> list[Any]:
    """The synonyms of a line; the semicolon of an HTML entity such as &amp; separates none."""
    if not isinstance(line, str):
        return [line]
    words, start = [], 0
    for match in re.finditer(rf"{ENTITY.pattern}|{SEPARATOR}", line):
        if html.unescape(match[0]) == match[0]:
            words.append(line[start : match.end() - 1])
            start = match.end()
    return [*words, line[start:]]


def _without_commas(lines: list[str]) -> list[str]:
    """The lines, or the parts of the only one between commas."""
    if len(lines) != 1 or len(_split(lines[0])) != 1 or not isinstance(lines[0], str):
        return lines
    parts = [part.strip() for part in lines[0].split(",") if part.strip()]
    if len(parts) < 2:
        return lines
    listed = ", ".join(map(quote, parts[:10])) + (", ..." if len(parts) > 10 else "")
    warnings.warn(f"one text with commas is read as {len(parts)} classes: {listed}", stacklevel=3)
    return parts


def _prompt(word: Any) -> str:
    """A word with single spaces; bytes that are not UTF-8, which Python hands over as surrogates, are Latin-1."""
    if not isinstance(word, str):
        raise ClassesError(f"the class name {quote(word)} is not a text; put it in quotes.")
    latin = re.sub("[\udc80-\udcff]", lambda half: chr(ord(half[0]) - 0xDC00), word)
    if latin != word:
        warnings.warn(f"a class name that is not UTF-8 is read as Latin-1: {quote(latin)}", stacklevel=4)
    if re.search("[\ud800-\udfff]", latin):
        raise ClassesError(f"the class name {quote(latin)} holds half of a character (a surrogate); type it again.")
    name = " ".join(latin.split())
    if re.search("[\x00-\x1f\x7f]", name):  # a terminal would obey them
        from ftfy import fixes

        name = fixes.remove_control_chars(fixes.remove_terminal_escapes(name)).strip()
        warnings.warn(f"a class name with control characters is read without them: {quote(name)}", stacklevel=4)
    return name


def _is_visible(word: str) -> bool:
    """True if the text tower reads more than spaces and invisible characters."""
    return any(letter.isprintable() and not letter.isspace() for letter in clean_text(word))


def background_name(background: Any) -> str | None:
    """A background as class names are read, None for none. Raises ClassesError."""
    if background is None:
        return None
    name = _prompt(background)
    if not _is_visible(name):
        raise ClassesError("the background has an empty name; name a class, or none.")
    return name


def quote(value: Any) -> str:
    """A name in quotes as messages show it, cut when it is long."""
    return f"{value[:MAX_SHOWN]!r}..." if isinstance(value, str) and len(value) > MAX_SHOWN else repr(value)[:200]


def check_enough(classes: Classes, background: str | None = None) -> None:
    """Raise ClassesError where one class would take every pixel of every image.

    The softmax over a single prompt is 1 everywhere, so a threshold leaves nothing to the background either.
    """
    if not classes.names:
        raise ClassesError("there are no classes; name at least one.")
    name = classes.names[0]
    if len(classes.names) == 1 and (background in (None, name) or len(classes.prompts) == 1):
        raise ClassesError(
            f"the class {quote(name)} alone would take every pixel; name what else the images show as further classes."
        )


def with_background(
    classes: Classes, background: str | None, rules: Mapping[str, float]
) -> tuple[tuple[str, ...], Int[np.ndarray, " Q"], int]:
    """Class names, class of each prompt and index of the background class.

    A background that is not among the classes becomes class 0, which only such a rule reaches. rules: background_rules
    of the settings, with a threshold that may be anything. Raises ClassesError when rules and background do not go
    together.
    """
    threshold = rules.get("threshold", 0.0)
    try:
        in_range = 0.0 <= float(threshold) <= 1.0
    except (TypeError, ValueError):
        in_range = False
    if not in_range:
        raise ClassesError(f"threshold {threshold!r:.60} is not a probability; give a number from 0 to 1.")
    rules = {name: value for name, value in rules.items() if value}
    class_of_prompt = np.asarray(classes.class_of_prompt, np.int32)
    if background is None:
        for name, value in rules.items():
            raise ClassesError(f"{name} {value} needs a class for the pixels below it; name one (--background NAME).")
        return classes.names, class_of_prompt, 0
    if background in classes.names:
        return classes.names, class_of_prompt, classes.names.index(background)
    if ";" in background:
        raise ClassesError(
            f"the background {quote(background)} has no synonyms; give its name, the first of its class."
        )
    if "foreground_below" in rules:
        raise ClassesError(f"foreground_below raises the probability of {background!r}; add that to the classes.")
    if not rules:
        raise ClassesError(
            f"background {background!r} is not among the classes, so only a threshold could reach it, and that is 0; "
            "set a threshold above 0 or add it to the classes."
        )
    return (background, *classes.names), class_of_prompt + 1, 0


def clean_text(text: str) -> str:
    """A text as OpenAI's CLIP cleans it for its tokenizer, which then takes lower case.

    Mojibake, curly quotes, ligatures, full-width letters, decomposed accents, HTML entities and spaces.
    """
    if not text.isascii() or not text.isprintable() or "&" in text:
        import ftfy  # when it is needed: it takes a while to load

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def read_lines(path: Path | str, what: str) -> list[str]:
    """The lines of a UTF-8 text file, stripped, without blank ones and comments, which begin with #.

    what: names the file in errors. Raises ClassesError.
    """
    path = place(str(path))
    try:
        # A pipe of the shell, <(command), is read; a named one could wait for ever, and /dev/zero has no end.
        if not stat.S_ISREG(path.stat().st_mode) and path.parent != Path("/dev/fd"):
            raise ClassesError(f"the {what} file {path} is not a file; name a text file.")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ClassesError(f"the {what} file {path} cannot be read ({error.strerror}).") from None
    except ValueError:  # a null byte in the path, too
        raise ClassesError(f"the {what} file {path} is not UTF-8 text; save it as UTF-8.") from None
    if len(content) > MAX_FILE_BYTES:
        raise ClassesError(f"the {what} file {path} is larger than {MAX_FILE_BYTES >> 20} MiB; name a text file.")
    # Not splitlines(), which also splits at form feeds and U+2028: indices of later classes would shift.
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise ClassesError(f"the {what} file {path} is empty; write one a line.")
    return lines


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Prompt templates, each with one {} for the name. Raises ClassesError."""
    if isinstance(templates, str) or not isinstance(templates, Iterable):
        raise ClassesError(f"the prompt templates are {quote(templates)}; give a list: ['a photo of a {{}}.'].")
    templates = tuple(templates)
    if not templates:
        raise ClassesError("there are no prompt templates; give at least one, such as 'a photo of a {}.'.")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ClassesError(f"the prompt template {quote(template)} does not hold one {{}} for the class name.")
    return templates


@lru_cache(maxsize=1)
def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompt templates that OpenAI published for ImageNet (Radford et al. 2021)."""
    return tuple((files("gla_jax.text") / "imagenet_templates.txt").read_text().splitlines())


@typed
def average_templates(features: Float[Array, "Q T E"]) -> Float[Array, "Q E"]:
    """One unit feature a prompt: each template's feature to length one, their mean, to length one again."""
    return l2_normalize(l2_normalize(features).mean(1))
