"""The models known by name: where their weights live, under which licence, and how large they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

EMBEDDED = "tiny-world"
DEFAULT_MODEL = "clip-vit-base-patch16+dino-vitb8"  # the paper's, of every command
# Titles by family, in the order in which they are listed; converting has the same families.
FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "clip": "CLIP",
        "siglip": "SigLIP, in place of CLIP",
        "tipsv2": "CLIP and features in one: TIPSv2",
        "dino": "features: DINO",
        "dinov2": "features: DINOv2",
        "clip-dinoiser": "layers on a CLIP: CLIP-DINOiser",
        "dinov3": "features: DINOv3",
    }
)
CODE_MIT = "MIT*"  # the hub's card names no licence, the repository of the code and weights says MIT


@dataclass(frozen=True)
class NamedModel:
    """One row: family, hub id, licence, sides in pixels, parameters in millions.

    gated: the hub hands the weights to accounts alone that their owner has let in.
    """

    family: str
    hub_id: str
    licence: str
    patch: int
    image_size: int
    millions: int
    note: str = ""
    gated: bool = False


# SHA-256 of files that publishers state: OpenAI's is a part of the file's address.
PUBLISHED = {"5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "OpenAI's ViT-B-16.pt"}
ROWS = (
    ("clip-vit-base-patch32", "clip", "openai/clip-vit-base-patch32", CODE_MIT, 32, 224, 151),
    ("clip-vit-base-patch16", "clip", "openai/clip-vit-base-patch16", CODE_MIT, 16, 224, 150),
    ("clip-vit-large-patch14", "clip", "openai/clip-vit-large-patch14", CODE_MIT, 14, 224, 428),
    ("clip-vit-large-patch14-336", "clip", "openai/clip-vit-large-patch14-336", CODE_MIT, 14, 336, 428),
    ("laion-clip-vit-base-patch16", "clip", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "MIT", 16, 224, 150),
    ("laion-clip-vit-large-patch14", "clip", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "MIT", 14, 224, 428),
    ("laion-clip-vit-huge-patch14", "clip", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "MIT", 14, 224, 986),
    ("laion-clip-vit-bigg-patch14", "clip", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", "MIT", 14, 224, 2540),
    ("metaclip-base-patch16", "clip", "facebook/metaclip-b16-fullcc2.5b", "CC-BY-NC-4.0", 16, 224, 150),
    ("metaclip-large-patch14", "clip", "facebook/metaclip-l14-fullcc2.5b", "CC-BY-NC-4.0", 14, 224, 428),
    ("metaclip2-base-patch16", "clip", "facebook/metaclip-2-worldwide-b16", "CC-BY-NC-4.0", 16, 224, 586),
    ("metaclip2-large-patch14", "clip", "facebook/metaclip-2-worldwide-l14", "CC-BY-NC-4.0", 14, 224, 1082),
    ("metaclip2-huge-patch14-378", "clip", "facebook/metaclip-2-worldwide-huge-378", "CC-BY-NC-4.0", 14, 378, 1859),
    ("metaclip2-bigg-patch14", "clip", "facebook/metaclip-2-worldwide-giant", "CC-BY-NC-4.0", 14, 224, 3630),
    ("tinyclip-vit-8m-patch16", "clip", "wkcn/TinyCLIP-ViT-8M-16-Text-3M-YFCC15M", "MIT", 16, 224, 23, "for laptops"),
    ("siglip2-base-patch16", "siglip", "google/siglip2-base-patch16-224", "Apache-2.0", 16, 224, 375),
    ("siglip2-base-patch16-512", "siglip", "google/siglip2-base-patch16-512", "Apache-2.0", 16, 512, 376),
    ("siglip2-large-patch16-256", "siglip", "google/siglip2-large-patch16-256", "Apache-2.0", 16, 256, 882),
    ("siglip2-large-patch16-512", "siglip", "google/siglip2-large-patch16-512", "Apache-2.0", 16, 512, 882),
    ("siglip2-so400m-patch14", "siglip", "google/siglip2-so400m-patch14-224", "Apache-2.0", 14, 224, 1135),
    ("siglip2-so400m-patch16-512", "siglip", "google/siglip2-so400m-patch16-512", "Apache-2.0", 16, 512, 1137),
    ("tipsv2-base-patch14", "tipsv2", "google/tipsv2-b14", "Apache-2.0", 14, 448, 196),
    ("tipsv2-large-patch14", "tipsv2", "google/tipsv2-l14", "Apache-2.0", 14, 448, 488),
    ("dino-vits16", "dino", "facebook/dino-vits16", "Apache-2.0", 16, 224, 22),
    ("dino-vits8", "dino", "facebook/dino-vits8", "Apache-2.0", 8, 224, 22),
    ("dino-vitb16", "dino", "facebook/dino-vitb16", "Apache-2.0", 16, 224, 86),
    ("dino-vitb8", "dino", "facebook/dino-vitb8", "Apache-2.0", 8, 224, 86, "the method's default"),
    ("dinov2-small", "dinov2", "facebook/dinov2-small", "Apache-2.0", 14, 518, 22, "numbers: centred"),
    ("dinov2-base", "dinov2", "facebook/dinov2-base", "Apache-2.0", 14, 518, 87),
    ("dinov2-large", "dinov2", "facebook/dinov2-large", "Apache-2.0", 14, 518, 304),
    ("dinov2-giant", "dinov2", "facebook/dinov2-giant", "Apache-2.0", 14, 518, 1137),
    ("dinov2-small-registers", "dinov2", "facebook/dinov2-with-registers-small", "Apache-2.0", 14, 518, 22),
    ("dinov2-base-registers", "dinov2", "facebook/dinov2-with-registers-base", "Apache-2.0", 14, 518, 87),
    ("dinov2-large-registers", "dinov2", "facebook/dinov2-with-registers-large", "Apache-2.0", 14, 518, 304),
    ("dinov2-giant-registers", "dinov2", "facebook/dinov2-with-registers-giant", "Apache-2.0", 14, 518, 1137),
    ("dinov3-vits16", "dinov3", "facebook/dinov3-vits16-pretrain-lvd1689m", "DINOv3", 16, 224, 22, "gated", True),
    ("dinov3-vitb16", "dinov3", "facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3", 16, 224, 86, "gated", True),
    ("dinov3-vitl16", "dinov3", "facebook/dinov3-vitl16-pretrain-lvd1689m", "DINOv3", 16, 224, 303, "gated", True),
)
MODELS: Mapping[str, NamedModel] = MappingProxyType({name: NamedModel(*row) for name, *row in ROWS})


def models_table() -> "Table":
    """The table as `gla-jax models` prints it, two lines a model so that 80 columns hold it."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="Models for --model CLIP+FEATURES, such as clip-vit-base-patch16+dino-vitb8",
        caption="pixels: side of a patch / of a training image\n"
        "numbers: of the method, which the model chooses where --preset names none;\n"
        "others take the published ones, which suit DINO B/8 and are not measured here\n"
        "* by the repository of its code; the model's own page names no licence\n"
        "gated: ask for access on the model's page first, then log in with `hf auth login`",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("name and origin", no_wrap=True)
    table.add_column("pixels", justify="right", no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_row(f"[bold]{EMBEDDED}[/], for the demo\n[dim]part of this package", "16, 8", "", "Apache-2.0")
    for family, title in FAMILIES.items():
        table.add_section()
        table.add_row(f"[italic]{title}")
        if family == "clip-dinoiser":
            table.add_row("[dim]convert last.pt of its repository", "", "", "Apache-2.0")
        if family == "tipsv2":
            table.add_row("[dim]by hand: convert the release's .npz files", "", "", "")
        for name, model in MODELS.items():
            if model.family == family:
                origin = f"[bold]{name}[/]{model.note and ', ' + model.note}\n[dim]{model.hub_id}"
                table.add_row(origin, f"{model.patch}/{model.image_size}", f"{model.millions} M", model.licence)
    return table
