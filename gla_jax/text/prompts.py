"""Class names as users write them, and the prompt templates around them."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from gla_jax.support.errors import ClassesError
from gla_jax.support.shapes import Array, Float, typed
from gla_jax.support.vectors import l2_normalize

SEPARATOR = ";"


@dataclass(frozen=True)
class Classes:
    """Class names [L], the prompts of all of them [Q] in order, and the class of each prompt [Q]."""

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    class_of_prompt: tuple[int, ...]


def parse_classes(lines: Iterable[str]) -> Classes:
    """Classes from one text each, "cat; tabby": synonyms parted by semicolons, the first one names the class.

    Warns where commas seem to part synonyms and where a word stands in two classes. Raises ClassesError for no classes,
    an empty name, a name that is given twice and a text where a list belongs.
    """
    if isinstance(lines, str):  # else its letters would be the classes
        raise ClassesError(f"the classes are one text, {lines!r}; give a list with one text a class: [{lines!r}].")
    names: list[str] = []
    prompts: list[str] = []
    class_of_prompt: list[int] = []
    for line in lines:
        synonyms = [" ".join(word.split()) for word in line.split(SEPARATOR)]
        if not all(synonyms):
            raise ClassesError(f"the class {line!r} has an empty name; write synonyms as 'cat; tabby'.")
        if synonyms[0] in names:
            raise ClassesError(f"the class {synonyms[0]!r} is given twice; write its synonyms in one line.")
        if "," in line and len(synonyms) == 1:
            warnings.warn(f"{line!r} is read as one name; synonyms are parted by semicolons", stacklevel=2)
        for word in prompts:
            if word in synonyms:
                first = names[class_of_prompt[prompts.index(word)]]
                warnings.warn(f"{word!r} stands in two classes; {first!r} takes its pixels", stacklevel=2)
        names.append(synonyms[0])
        prompts.extend(synonyms)
        class_of_prompt.extend([len(names) - 1] * len(synonyms))
    if not names:
        raise ClassesError("there are no classes; name at least one.")
    return Classes(tuple(names), tuple(prompts), tuple(class_of_prompt))


def read_lines(path: Path | str, what: str) -> list[str]:
    """The lines of a UTF-8 text file that are not blank, stripped; `what` names its purpose in errors."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ClassesError(f"the {what} file {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ClassesError(f"the {what} file {path} is not UTF-8 text.") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ClassesError(f"the {what} file {path} is empty; write one a line.")
    return lines


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Prompt templates, each with one {} for the name. Raises ClassesError."""
    if not templates:
        raise ClassesError("there are no prompt templates; give at least one, such as 'a photo of a {}.'.")
    for template in templates:
        if template.count("{}") != 1:
            raise ClassesError(f"the prompt template {template!r} does not hold one {{}} for the class name.")
    return tuple(templates)


@lru_cache(maxsize=1)
def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompt templates that OpenAI published for ImageNet (Radford et al. 2021)."""
    return tuple((files("gla_jax.text") / "imagenet_templates.txt").read_text().splitlines())


@typed
def average_templates(features: Float[Array, "Q T E"]) -> Float[Array, "Q E"]:
    """One unit feature a prompt: each template's feature to length one, their mean, to length one again."""
    return l2_normalize(l2_normalize(features).mean(1))
