"""Sizes that routed tensors show, and the rest of a spec: chosen by the user, stated by a configuration or assumed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gla_jax.convert.configs import Pixels, Statements
from gla_jax.convert.rules import Routed, short
from gla_jax.images.windows import Channels
from gla_jax.support.errors import ConversionError

MAX_BLOCKS = 256  # of a tower; the largest published one has 48


@dataclass
class Facts:
    """Facts about a model besides its tensors.

    chosen: by the user, which goes first; stated: by the configuration; assumed: what neither says, filled by get().
    """

    chosen: Mapping[str, Any]
    stated: Statements
    assumed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stated = {name: stated for name, stated in self.stated.items() if name not in self.chosen}

    def get(self, name: str, width: int, default: Any, reason: str) -> Any:
        """A field of a spec; default is assumed for that reason where nothing says it. width: of its tower."""
        if name in self.chosen:
            return self.chosen[name]
        if name in self.stated:
            value = self.stated[name].value
            return value(width) if callable(value) else value
        if default is not None:
            self.assumed[name] = f"{default}: {reason}"
        return default

    def num_heads(self, tower: str, width: int, published: Mapping[int, int], option: str) -> int:
        """Attention heads of a tower, which shapes do not show. Raises ConversionError, naming the option."""
        reason = f"as the published models of width {width}"
        num_heads = self.get(f"{tower}num_heads", width, published.get(width), reason)
        if num_heads is None:
            raise ConversionError(
                f"tensors of width {width} do not say how many attention heads they are: give {option}."
            )
        if type(num_heads) is not int or num_heads < 1 or width % num_heads:
            raise ConversionError(
                f"{short(num_heads)} attention heads do not divide the width {width}: give another {option}."
            )
        return num_heads

    def layer_norm_eps(self, tower: str, width: int, default: float) -> float:
        """The epsilon of a tower's LayerNorms. Raises ConversionError for what is no small positive number."""
        eps = self.get(f"{tower}layer_norm_eps", width, default, "as the project that published such names")
        if type(eps) is not float or not 0 < eps < 1:
            raise ConversionError(
                f"its configuration has {short(eps)} as epsilon of LayerNorm, not a number from 0 to 1."
            )
        return eps

    def blocks(self, tower: str, width: int, published: Mapping[int, int], eps: float) -> dict[str, Any]:
        """num_heads and layer_norm_eps of a tower's spec. Raises ConversionError.

        Args:
            tower: "image/", "text/" or empty, as its paths begin.
            width: C.
            published: heads of the published models, by width.
            eps: epsilon of the published models.
        """
        option = "--text-heads" if tower == "text/" else "--heads"
        num_heads = self.num_heads(tower, width, published, option)
        return {"num_heads": num_heads, "layer_norm_eps": self.layer_norm_eps(tower, width, eps)}

    def pixels(self, stated: Pixels | None, published: Pixels, words: str) -> dict[str, Channels]:
        """pixel_mean and pixel_std of a spec, those of the published models where no file states them.

        words: what they are called in the reason that is recorded then.
        """
        if stated is None:
            self.assumed["pixels"] = f"{words}: no file beside the weights says how pixels are normalised"
        mean, std = stated or published
        return {"pixel_mean": mean, "pixel_std": std}


def shape_of(routed: Mapping[str, Routed], path: str, axes: int) -> tuple[int, ...]:
    """The shape of a target with that many axes. Raises ConversionError when it is missing or of another rank."""
    if path not in routed:
        raise ConversionError(f"nothing in the source gives {path}.")
    source, leaf = routed[path]
    if len(leaf.shape) != axes:
        raise ConversionError(f"{source} gives {path} the wrong number of axes: {len(leaf.shape)}, not {axes}.")
    return tuple(leaf.shape)


def transformer_sizes(routed: Mapping[str, Routed], tower: str = "") -> dict[str, int]:
    """depth and mlp_width of a transformer whose paths begin with tower; mlp_width is what the second layer reads.

    Raises ConversionError for blocks that are missing or too many, before anything is built for them.
    """
    start = f"{tower}blocks_"
    # Cut, for Python refuses numbers of thousands of digits; fit() has no place for one that was.
    blocks = {int(path.removeprefix(start).partition("/")[0][:9]) for path in routed if path.startswith(start)}
    missing = next(index for index in range(len(blocks) + 1) if index not in blocks)
    if missing < len(blocks) or not blocks:
        raise ConversionError(f"nothing in the source gives {start}{missing}.")
    if len(blocks) > MAX_BLOCKS:
        raise ConversionError(f"it has {len(blocks)} blocks, more than the {MAX_BLOCKS} of any model that converts.")
    return {"depth": len(blocks), "mlp_width": shape_of(routed, f"{start}0/mlp/down/kernel", 2)[0]}


def projection_sizes(routed: Mapping[str, Routed], tower: str = "") -> tuple[int, int]:
    """Side of a patch in pixels, and width in channels, of a vision tower."""
    pixels, width = shape_of(routed, f"{tower}patch_tokens/projection/kernel", 2)
    patch_size = math.isqrt(pixels // 3)
    if 3 * patch_size**2 != pixels:
        raise ConversionError(f"its patches hold {pixels} numbers, which are not a square of RGB pixels.")
    return patch_size, width


def vision_sizes(routed: Mapping[str, Routed], tower: str = "") -> dict[str, int]:
    """image_size, patch_size, width, depth and mlp_width of a vision tower, in pixels and channels."""
    patch_size, width = projection_sizes(routed, tower)
    places, _ = shape_of(routed, f"{tower}patch_tokens/positions", 2)
    grid_side = math.isqrt(places)
    if grid_side**2 != places or not places:
        raise ConversionError(f"its {places} patch positions do not form a square.")
    sizes = {"image_size": grid_side * patch_size, "patch_size": patch_size, "width": width}
    return {**sizes, **transformer_sizes(routed, tower)}


def text_sizes(routed: Mapping[str, Routed]) -> dict[str, int]:
    """vocabulary, width, depth and mlp_width of a text tower."""
    vocabulary, width = shape_of(routed, "text/token_embedding/embedding", 2)
    return {"vocabulary": vocabulary, "width": width, **transformer_sizes(routed, "text/")}


def registers_of(routed: Mapping[str, Routed], tower: str = "") -> int:
    """Number of register tokens of a vision tower, 0 where it has none."""
    path = f"{tower}patch_tokens/registers"
    return shape_of(routed, path, 2)[0] if path in routed else 0
