"""Classes by example: the mean unit feature of the tokens that labelled images give a class, in place of a text."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gla_jax.labels.targets import token_targets
from gla_jax.predict.features import unit_tokens
from gla_jax.predict.model import Model
from gla_jax.support.arrays import Float, Int, Integer, UInt8
from gla_jax.support.errors import ClassesError
from gla_jax.support.progress import track
from gla_jax.text.prompts import Classes, quote

MAX_NAMED = 5  # classes in a warning
Labelled = tuple[UInt8[np.ndarray, "h w 3"], Integer[np.ndarray, "h w"]]


@dataclass(frozen=True)
class ExampleClasses(Classes):
    """Classes that labelled images show; their prompts are their names, which no text tower reads.

    origin: the images' place, for messages; sha256: of images and labels; ignore: value of pixels without a class;
    count: of the images; read: the RGB image at an index, and the class of every pixel.
    """

    origin: str
    sha256: str
    ignore: int
    count: int
    read: Callable[[int], Labelled] = field(compare=False, repr=False)


class ClassSums(NamedTuple):
    """Sum [L E] float64 and number [L] of the unit features of the tokens of each class."""

    total: Float[np.ndarray, "L E"]
    count: Int[np.ndarray, " L"]

    def merge(self, other: "ClassSums") -> "ClassSums":
        """The sums over both sets of tokens."""
        return ClassSums(self.total + other.total, self.count + other.count)

    @classmethod
    def zeros(cls, classes: int, width: int) -> "ClassSums":
        """The sums over no tokens."""
        return cls(np.zeros((classes, width)), np.zeros(classes, np.int64))

    def embeddings(self) -> tuple[Float[np.ndarray, "Q E"], Int[np.ndarray, " Q"]]:
        """A row of length one for each class that has tokens, float32, and the index of its class."""
        present = np.flatnonzero(self.count).astype(np.int32)
        rows = self.total[present]
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), present


def class_sums(tokens: Float[np.ndarray, "W S E"], targets: Int[np.ndarray, "W S"], classes: int) -> ClassSums:
    """Sums over the tokens of windows; targets: the class of each, below 0 for none; classes: L."""
    # Float64: a class may have millions of tokens over all images.
    total = np.zeros((classes, tokens.shape[-1]))
    for index in np.unique(targets[targets >= 0]):
        total[index] = tokens[targets == index].sum(0, dtype=np.float64)
    return ClassSums(total, np.bincount(targets[targets >= 0], minlength=classes))


def sums_of_images(model: Model, images: Iterable[Labelled], classes: int, ignore: int) -> ClassSums:
    """Sums over labelled images, each through the towers and the method under the model's settings.

    Args:
        model: parameters and settings.
        images: RGB, and the class of every pixel; a token has the class under its centre.
        classes: L.
        ignore: value of pixels without a class.
    """
    sums = ClassSums.zeros(classes, model.params.joint_width)
    for image, label in images:
        grid, tokens = unit_tokens(model, image)
        sums = sums.merge(class_sums(tokens, token_targets(label, grid, tokens.shape[:2], ignore), classes))
    return sums


def example_embeddings(model: Model, classes: ExampleClasses) -> tuple[Float[np.ndarray, "Q E"], Int[np.ndarray, " Q"]]:
    """A row of length one for each class that has tokens in the labelled images, and the index of its class.

    Warns of classes without a token, which label no pixel. Raises ClassesError when fewer than two have any.
    """
    images = map(classes.read, track(range(classes.count), "labelled images"))
    sums = sums_of_images(model, images, len(classes.names), classes.ignore)
    check_present(sums, classes.names, classes.origin)
    return sums.embeddings()


def check_present(sums: ClassSums, names: Sequence[str], origin: str) -> None:
    """Warn of classes without a token, which label no pixel. Raises ClassesError when fewer than two have any.

    Args:
        sums: over the labelled images.
        names: of the classes.
        origin: of the images, for messages.
    """
    missing = [quote(name) for name, count in zip(names, sums.count, strict=True) if not count]
    if len(missing) > len(names) - 2:
        raise ClassesError(
            f"the labels in {origin} show {len(names) - len(missing)} of {len(names)} classes at the working size; "
            "label two at least, in larger regions."
        )
    if missing:
        names = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
        warnings.warn(f"no labelled token of {names} in {origin}: no pixel gets that class", stacklevel=2)
