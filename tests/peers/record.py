"""Record what other projects' code computes with small random models: python -m tests.peers.record

Needs the extra "peers" (open_clip_torch, timm, transformers, torch). Writes tests/peers/data/NAME: a checkpoint as its
project saves it, case.json, and outputs.npz, the pixels and token ids with what the project's own code makes of them;
then converts every checkpoint and compares. The ordinary suite reads these files without the packages.
"""

import importlib.abc
import importlib.machinery
import json
import shutil
import sys
import types
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

DATA = Path(__file__).parent / "data"
VISION = {"image_size": 24, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2, "mlp_ratio": 1.5}
TEXT = {"context_length": 9, "vocab_size": 11, "width": 40, "heads": 5, "layers": 2}
SIZES = ((24, 24), (40, 56), (16, 16))  # of the training, larger and smaller
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class Anything(type):
    """A class whose every attribute is text."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class Stub(types.ModuleType):
    """A module whose every public name is such a class."""

    def __getattr__(self, name: str) -> Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class StubTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of torchvision whose every name is an empty class: peers import it, and these models never use it."""

    def find_spec(self, name, path=None, target=None):
        is_package = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_package else None

    def create_module(self, spec):
        return Stub(spec.name)

    def exec_module(self, module):
        module.__path__ = []


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights under which every part matters: no bias, scale or position is near its neutral value."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "embed" not in name and "token" not in name:
            parameter.normal_(0, (parameter.shape[0] / parameter.numel()) ** 0.5, generator=generator)
        else:
            scale = name.endswith("weight") and parameter.ndim == 1
            parameter.normal_(1.0 if scale else 0.0, 0.3, generator=generator)
    return model.eval()


def pixels(size: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(sum(size)).standard_normal((2, 3, *size), np.float32))


def token_ids(end: int) -> torch.Tensor:
    """Texts that end at places of their own, padded with 0."""
    ids = torch.from_numpy(np.random.default_rng(1).integers(1, min(end, 4), (3, TEXT["context_length"])))
    for row, place in enumerate((2, 8, 5)):
        ids[row, place], ids[row, place + 1 :] = end, 0
    return ids


def record(name: str, family: str, outputs: dict[str, torch.Tensor], file: str = "", **options) -> None:
    """Complete the folder of a case: how it converts, and what its project computes."""
    (DATA / name / "case.json").write_text(json.dumps({"family": family, "file": file, "options": options}) + "\n")
    np.savez_compressed(DATA / name / "outputs.npz", **{key: x.detach().numpy() for key, x in outputs.items()})


def folder(name: str) -> Path:
    (DATA / name).mkdir(parents=True)
    return DATA / name


def clip_outputs(model, end: int = TEXT["vocab_size"] - 1) -> dict[str, torch.Tensor]:
    ids = token_ids(end)
    image = model.encode_image(pixels(SIZES[0]))
    return {"pixels_0": pixels(SIZES[0]), "image_0": image, "token_ids": ids, "text": model.encode_text(ids)}


def open_clip_model(vision: dict, text: dict, custom: bool = False, **model):
    from open_clip.model import CLIP, CustomTextCLIP

    sizes = {"embed_dim": 16, "vision_cfg": {**VISION, **vision}, "text_cfg": {**TEXT, **text}, **model}
    return randomise((CustomTextCLIP if custom else CLIP)(**sizes)), {**sizes, "custom_text": custom}


def open_clip_hub() -> None:
    """Folders as the hub has them."""
    cases = {
        "gelu": ({}, {}, {}),
        "quick_gelu": ({}, {}, {"quick_gelu": True}),
        "eos": ({}, {"pool_type": "eos", "eos_id": 5}, {"custom": True}),
        "options": (
            {
                "pos_embed_type": "sin_cos_2d",
                "final_ln_after_pool": True,
                "norm_kwargs": {"eps": 1e-3},
                "patch_dropout": 0.5,
            },
            {"norm_kwargs": {"eps": 1e-2}, "mlp_ratio": 2.0},
            {"custom": True},
        ),
    }
    for name, (vision, text, options) in cases.items():
        model, config = open_clip_model(vision, text, **options)
        out = folder(f"open_clip_{name}")
        save_file(model.state_dict(), out / "open_clip_model.safetensors")
        pre = {"mean": [0.5] * 3, "std": [0.25] * 3}
        (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": pre}))
        if name == "gelu":  # timm's half beside it, as timm's repositories of CLIPs have it
            save_file({"blocks.0.norm1.weight": torch.ones(3)}, out / "model.safetensors")
            (out / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_clip_224"}))
        record(out.name, "clip", clip_outputs(model, text.get("eos_id", TEXT["vocab_size"] - 1)))


def open_clip_training() -> None:
    """A checkpoint of open_clip's training, with DistributedDataParallel and torch.compile around the model."""
    model, _ = open_clip_model({}, {})
    optimizer = torch.optim.AdamW(model.parameters())
    state = {f"_orig_mod.module.{name}": x for name, x in model.state_dict().items()}
    out = folder("open_clip_training")
    content = {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save({**content, "args": Namespace(lr=1e-3)}, out / "epoch_3.pt")
    record(out.name, "clip", clip_outputs(model), "epoch_3.pt", activation="gelu", num_heads=4, text_heads=5)


def openai_archive() -> None:
    """A TorchScript archive in OpenAI's layout."""
    model, _ = open_clip_model({}, {}, quick_gelu=True)
    out = folder("openai_archive")
    traced = torch.jit.trace(model, (pixels(SIZES[0]), token_ids(10)), check_trace=False)
    traced.save(str(out / "traced.pt"))
    with zipfile.ZipFile(out / "traced.pt") as old, zipfile.ZipFile(out / "model.pt", "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):  # the paths of this machine
                new.writestr(entry, old.read(entry))
    (out / "traced.pt").unlink()
    # Its code shows the activation, which read_model takes from there; convert_state alone has to be told.
    record(out.name, "clip", clip_outputs(model), "model.pt", num_heads=4, text_heads=5)


def timm_towers() -> None:
    """DINO, DINOv2 and DINOv2 with registers as timm runs them, with its own resize of positions."""
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 0}
    cases = {
        "timm_dino": ("dino", "vit_tiny_patch8_224", {"mlp_ratio": 1.5}),
        "timm_dinov2": ("dinov2", "vit_tiny_patch8_dinov2", {"mlp_ratio": 1.5, "init_values": 1.0}),
        "timm_dinov2_registers": (
            "dinov2",
            "vit_tiny_patch8_reg4_dinov2",
            {"init_values": 1.0, "reg_tokens": 4, "no_embed_class": True, "mlp_ratio": 3.0, "mlp_layer": SwiGLUPacked}
            | {"act_layer": torch.nn.SiLU},
        ),
    }
    for name, (family, architecture, options) in cases.items():
        model = randomise(VisionTransformer(**sizes, **options, dynamic_img_size=True))
        out = folder(name)
        save_file(model.state_dict(), out / "model.safetensors")
        pretrained = {"input_size": [3, 24, 24], **IMAGENET}
        config = {"architecture": architecture, "num_features": 32, "pretrained_cfg": pretrained}
        (out / "config.json").write_text(json.dumps({**config, "model_args": {"num_heads": 4, "depth": 2}}))
        outputs = {}
        for i, size in enumerate(SIZES):
            outputs |= {f"pixels_{i}": pixels(size), f"tokens_{i}": model.forward_features(pixels(size))}
        record(name, family, outputs)


def transformers_models() -> None:
    """Folders as save_pretrained writes them."""
    from tests.convert import published

    clip = randomise(published.clip_model())
    clip.save_pretrained(folder("transformers_clip"))
    ids = token_ids(6)
    vision = clip.visual_projection(clip.vision_model(pixels(SIZES[0])).pooler_output)
    text = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
    record(
        "transformers_clip", "clip", {"pixels_0": pixels(SIZES[0]), "image_0": vision, "token_ids": ids, "text": text}
    )
    for name, family, model, end in (
        ("transformers_metaclip2", "clip", published.metaclip2_model(), 2),
        ("transformers_siglip", "siglip", published.siglip_model(), 6),
    ):
        randomise(model).save_pretrained(folder(name))
        outputs = {"token_ids": token_ids(end), "text": model.get_text_features(token_ids(end)).pooler_output}
        for i, size in enumerate(SIZES):
            image = model.get_image_features(pixels(size), interpolate_pos_encoding=True).pooler_output
            outputs |= {f"pixels_{i}": pixels(size), f"image_{i}": image}
        record(name, family, outputs)
    for name, family, model in (
        ("transformers_dino", "dino", published.dino_model()),
        ("transformers_dinov2", "dinov2", published.dinov2_model()),
    ):
        randomise(model).save_pretrained(folder(name))
        resize = {"interpolate_pos_encoding": True} if family == "dino" else {}
        outputs = {}
        for i, size in enumerate(SIZES):
            tokens = model(pixels(size), **resize).last_hidden_state
            outputs |= {f"pixels_{i}": pixels(size), f"tokens_{i}": tokens}
        record(name, family, outputs)


CASES: tuple[Callable[[], None], ...] = (
    open_clip_hub,
    open_clip_training,
    openai_archive,
    timm_towers,
    transformers_models,
)


def main() -> int:
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # remembers its answer: the stub is for the others
    sys.meta_path.insert(0, StubTorchvision())
    shutil.rmtree(DATA, ignore_errors=True)
    with torch.inference_mode():
        for case in CASES:
            case()
    from tests.peers.test_recorded import errors_of

    worst = {path.name: max(errors_of(path).values()) for path in sorted(DATA.iterdir())}
    for name, error in worst.items():
        print(f"{name:28} {error:.1e}")
    size = sum(path.stat().st_size for path in DATA.rglob("*"))
    print(f"{size / 1e6:.1f} MB")
    return int(max(worst.values()) > 2e-5 or size > 5e6)


if __name__ == "__main__":
    raise SystemExit(main())
