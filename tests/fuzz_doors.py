"""The doors of tests.fuzz: valid files of each kind, and the calls that read them once they are damaged."""

import io
import json
import math
import os
import random
import shutil
import socket
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.eval import trees
from tests.fuzz_damage import ODD, damaged, damaged_zip, odd_json

Call = Callable[[], object]
Door = Callable[[random.Random, Path], Call]

# ---- images and labels


def saved(image: Image.Image, kind: str, **options: Any) -> bytes | None:
    """The image as a file of that format, None where the format cannot hold it."""
    file = io.BytesIO()
    try:
        image.save(file, kind, **options)
    except Exception:
        return None
    return file.getvalue()


@cache
def image_files() -> list[bytes]:
    """An image in every mode of every format that Pillow writes, and in the ways that cameras and programs write."""
    Image.init()
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (24, 32, 4), np.uint8))
    wide = Image.fromarray(rng.integers(0, 65536, (24, 32), np.uint16))
    modes = [colours.convert(mode) for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")]
    modes += [wide, wide.convert("I"), colours.convert("F"), Image.new("LAB", (9, 7)), Image.new("I;16B", (9, 7))]
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb, palette = colours.convert("RGB"), colours.convert("P")
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb], "duration": 50}
    special = [
        *(saved(rgb, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF")),
        *(saved(rgb, kind, **frames) for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO")),
        *(saved(rgb, "TIFF", compression=how) for how in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "zstd")),
        *(saved(colours.convert("1"), "TIFF", compression=how) for how in ("group3", "group4", "tiff_ccitt")),
        *(saved(rgb, "JPEG", progressive=True, quality=5), saved(rgb, "WEBP", lossless=True)),
        *(saved(palette, "PNG", transparency=bytes(range(256))), saved(palette, "GIF", transparency=3)),
        *(saved(wide, "PNG", transparency=9), saved(rgb, "PNG", transparency=(1, 2, 3))),
        *(saved(rgb, "JPEG2000", tile_size=(16, 16)), saved(rgb, "BMP"), b"P2\n3 2\n255\n1 2 3 4 5 6\n"),
        *(b"P5 4 1 65535\n" + bytes(8), b"Pf\n2 2\n-1.0\n" + bytes(16), b"P1 2 2\n0 1 1 0\n"),
    ]
    kinds = sorted(set(Image.SAVE) - {"PDF"})
    return [content for content in (*(saved(image, kind) for kind in kinds for image in modes), *special) if content]


def write_odd(path: Path, content: bytes, rng: random.Random) -> None:
    """Write a file, or rarely put something there that is none."""
    kind = rng.random()
    if kind < 0.005:
        os.mkfifo(path)
    elif kind < 0.01:
        path.mkdir()
    elif kind < 0.015:
        path.symlink_to(path)
    elif kind < 0.02:
        with socket.socket(socket.AF_UNIX) as listener, suppress(OSError):  # a long name is refused
            listener.bind(str(path))
    else:
        path.write_bytes(content)


def images(_: Path) -> Door:
    """Image files of every kind, through the reader of `segment` and those of `eval`."""
    from gla_jax.eval.datasets.dataset import example_reader
    from gla_jax.eval.datasets.labels import label_code
    from gla_jax.images.reading import SUFFIXES, as_rgb, find_images, read_image

    files = image_files()
    readers = [example_reader(benchmark, label_code("plain", 3)) for benchmark in ("folder", "voc21")]

    def door(rng: random.Random, folder: Path) -> Call:
        path, way = folder / f"a{rng.choice(SUFFIXES)}", rng.randrange(8)
        content = damaged(rng.choice(files), rng, files)
        write_odd(path, content, rng)

        def call() -> None:
            (path_read,) = find_images([folder]) if not path.is_dir() and os.path.lexists(path) else [path]
            if way == 0:
                pixels = read_image(content, "a record")
            elif way in (1, 2):
                pixels = readers[way - 1]("a", path_read, None).image
            elif way == 3 and path.is_file():
                pixels = as_rgb(path)
            else:
                pixels = read_image(path_read)
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            assert pixels.size

        return call

    return door


def labels(seeds: Path) -> Door:
    """Label files, split files, class lists and copies of TensorFlow Datasets."""
    from gla_jax.eval.benchmarks import class_names
    from gla_jax.eval.datasets.dataset import open_dataset
    from gla_jax.eval.datasets.labels import label_code, read_label
    from gla_jax.eval.datasets.tfds_copy import prepare

    tables = class_names("coco_object").tables
    codes = [label_code("plain", count) for count in (1, 3, 21, 254, 255, 256, 1000)]
    codes += [label_code(encoding, 19) for encoding in ("zero_ignored", "last_ignored")]
    codes += [label_code("stuffthingmaps", 81, tables)]
    indices = np.arange(108, dtype=np.uint8).reshape(9, 12) % 4
    files = [trees.packed_png(indices % min(2**bits, 4), bits) for bits in (1, 2, 4, 8)]
    files += [saved(Image.fromarray(indices.astype(kind)), "PNG") for kind in (np.uint8, np.uint16, bool)]
    palette = Image.fromarray(indices)
    palette.putpalette(list(range(256)) * 3)
    files += [saved(palette, "PNG", bits=bits) for bits in (2, 4, 8)]
    files += [saved(palette, kind) for kind in ("GIF", "TIFF", "BMP")] + image_files()[::10]
    voc, own = trees.voc(seeds / "voc", [0, 1, 255]), trees.folder(seeds / "folder", 3, [0, 2])
    made = prepare("voc21", voc, seeds / "copies")

    def label(rng: random.Random, folder: Path) -> Call:
        path, code = folder / "a.png", rng.choice(codes)
        content = damaged(rng.choice(files), rng, files)
        write_odd(path, content, rng)

        def call() -> None:
            classes = read_label(*rng.choice(((path, code, str(path)), (content, code, "a record"))))
            assert classes.ndim == 2
            assert classes.dtype == code.dtype
            assert ((classes < code.classes) | (classes == code.ignore)).all()

        return call

    def data_set(rng: random.Random, folder: Path) -> Call:
        key, source, name = rng.choice(
            (
                ("voc21", voc, "ImageSets/Segmentation/val.txt"),
                ("voc20", voc, "ImageSets/Segmentation/val.txt"),
                ("voc21", voc, "SegmentationClass/a.png"),
                ("folder", own, "classes.txt"),
                *(("voc21", made, path.name) for path in sorted(made.iterdir()) for _ in range(2)),
            )
        )
        shutil.copytree(source, folder / "data")
        path = folder / "data" / name
        content = path.read_bytes()
        path.unlink()
        if name.endswith(".json"):
            changed = odd_json(json.loads(content), rng)
        elif name.endswith("val.txt") and rng.random() < 0.7:
            line = rng.choice(
                ("/etc/passwd", "../../x", "a/../b", "a//b", "C:a", "a\\b", "a\0", "\x1b[2J", "x" * 5000, "ä")
            )
            changed = rng.choice((content + line.encode(), line.encode(), content + b"\n\r\n \t" + content))
        else:
            changed = damaged(content, rng)
        write_odd(path, changed, rng)

        def call() -> None:
            dataset = open_dataset(key, folder / "data")
            assert dataset.ids
            for index, image_id in enumerate(dataset.ids[:8]):
                target = os.path.normpath(folder / "out" / image_id)
                assert target.startswith(str(folder / "out") + os.sep)
                assert dataset.read(index).image_id == image_id

        return call

    return lambda rng, folder: (label if rng.random() < 0.7 else data_set)(rng, folder)


# ---- settings, results and checkpoints


def settings(_: Path) -> Door:
    """Preset files, settings by name, and files of class names and templates."""
    from gla_jax.config import METHODS, SegmenterConfig
    from gla_jax.settings.options import PROMPT_LISTS, preset_content, settings_from_options, with_fields
    from gla_jax.text.prompts import check_templates, parse_classes, read_lines

    report = {"fitted": {"miou": 50.0}, "images": ["a", "b"]}
    presets = [
        preset_content(SegmenterConfig(method=METHODS[name]), name, next(iter(PROMPT_LISTS)), report)
        for name in ("gla", "gla-on-clip-keys")
    ]
    fields = ("threshold", "logit_scale", "short_side", "crop", "stride", "anchor_threshold", "alpha_beta", "method")
    fields += ("block_size", "iterations", "temperature", "long_side", "dtype", "precision", "tower_batch", "x", "")
    values = [16, 224, 448, *(value for value in ODD if not isinstance(value, list | dict))]
    words = [*"; #,\n\r\0", "cat", "tabby cat", "a photo of a {}.", "{}", "{{}}", "{x!r:0}", "[/x]"]
    words += ["&amp;", "\x1b[31m", "\u202e", "\ufeff", "\ud800", "gräs", "猫", "x" * 3000]

    def door(rng: random.Random, folder: Path) -> Call:
        path, way = folder / "a.json", rng.randrange(4)
        odd = {rng.choice(fields): rng.choice(values) for _ in range(rng.choice((1, 1, 2, 3)))}
        lines = "".join(rng.choices(words, k=rng.randrange(12))).encode("utf-8", "surrogatepass")
        write_odd(path, odd_json(rng.choice(presets), rng) if way < 2 else damaged(lines, rng), rng)

        def call() -> None:
            if way == 0:
                config = settings_from_options(preset=str(path), method=rng.choice(("gla", "gla-on-clip-keys", "x")))
            elif way == 1:
                config = settings_from_options(preset=str(path), crop=224, stride=rng.choice((0, 112, 224, 300)))
            elif way == 2:
                config = with_fields(SegmenterConfig(), odd)
            else:
                rng.choice((parse_classes, check_templates))(read_lines(path, "classes"))
                return
            assert all(
                map(math.isfinite, (config.logit_scale, config.threshold, config.windows.crop, config.windows.stride))
            )

        return call

    return door


def run_files(seeds: Path) -> Door:
    """results.json, run.json and records of a run, as `eval` and `eval compare` read them."""
    from rich.console import Console

    from gla_jax.eval.records import parse_line, read_records
    from gla_jax.eval.report.compare import compare, comparison_html, comparison_tables
    from gla_jax.eval.report.summary import summary, summary_markdown
    from gla_jax.eval.results import read_results, results, write_results
    from gla_jax.eval.runner import Run, measure, open_benchmark
    from gla_jax.outputs.files import claim_folder
    from tests.eval.fakes import ColourSegmenter

    dataset, row = open_benchmark("voc21", trees.voc(seeds / "voc", [0, 1, 15], ("a", "b")))
    run = Run(dataset, row, "proxyclip", ColourSegmenter(row.config("proxyclip")), seeds / "out")
    write_results(run.out, results(measure(run)))
    content = json.loads((run.out / "results.json").read_text())
    (records,) = (run.out / "records").glob("*.jsonl")

    def door(rng: random.Random, folder: Path) -> Call:
        out = folder / "out"
        shutil.copytree(run.out, out)
        way = rng.randrange(4)
        if way < 2:
            path, changed = out / "results.json", odd_json(content, rng)
        elif way == 2:
            path, changed = out / "run.json", odd_json(run.settings(), rng)
        else:
            path, lines = out / "records" / records.name, records.read_text().splitlines()
            texts = [odd_json(json.loads(line.rpartition("\t")[0]), rng) for line in lines]
            sealed = [text + f"\t{zlib.crc32(text):08x}\n".encode() for text in texts]
            changed = b"".join(sealed) if rng.random() < 0.8 else damaged(records.read_bytes(), rng)
        path.unlink()
        write_odd(path, changed, rng)

        def call() -> None:
            if way == 0:
                comparison = compare(run.out, out)
                Console(file=io.StringIO()).print(comparison_tables(comparison))
                comparison_html(comparison)
            elif way == 1:
                summary_markdown(summary([read_results(out)]))
            elif way == 2:
                claim_folder(out, run.settings(), has_records=True)
            elif path.is_file():
                for record in read_records(out).values():
                    assert parse_line(record.line()) == record

        return call

    return door


def checkpoints(seeds: Path) -> Door:
    """Weights and configurations of other programs, and the project's own model folders."""
    import torch
    from safetensors.numpy import load_file

    from gla_jax.checkpoints.model_folder import read_checkpoint, write_checkpoint
    from gla_jax.convert.model_folder import read_model
    from tests.convert import published
    from tests.small_models import VFM, random_params

    for name, model in (
        ("dino", published.dino_model),
        ("dinov2", published.dinov2_model),
        ("clip", published.clip_model),
    ):
        model().save_pretrained(seeds / name)
        state = published.as_torch(load_file(seeds / name / "model.safetensors"))
        torch.save({"teacher": state, "args": {"lr": 0.1}, "epoch": 3}, seeds / f"{name}.pt")
    published.write_tokenizer(seeds / "clip")
    (seeds / "tipsv2").mkdir()
    pair = published.tips_arrays(published.tips_model(vocab_size=600), seeds / "transformers")
    for tower, arrays in zip(("vision", "text"), pair, strict=True):
        np.savez(seeds / "tipsv2" / f"tips_{tower}.npz", **arrays)
    tokenizer = Path(__file__).parent / "peers" / "tokenizers" / "bpe.model"
    shutil.copy(tokenizer, seeds / "tipsv2" / "tokenizer.model")
    write_checkpoint(seeds / "own", VFM, random_params(VFM, 1), {"source": "random"})
    own_files = sorted(path for path in (seeds / "own").rglob("*") if path.is_file())

    def door(rng: random.Random, folder: Path) -> Call:
        family = rng.choice(("dino", "dinov2", "clip"))
        way = rng.randrange(6)
        if way == 5:  # NumPy's archives and their tokenizer
            shutil.copytree(seeds / "tipsv2", folder / "in")
            path = folder / "in" / rng.choice(("tips_vision.npz", "tips_text.npz", "tokenizer.model"))
            content = path.read_bytes()
            whole = path.suffix == ".npz" and rng.random() < 0.7
            path.unlink()
            write_odd(path, damaged_zip(content, rng) if whole else damaged(content, rng), rng)
            options = {"num_heads": 4, "text_heads": 4, "offline": True}
            return lambda: read_model("tipsv2", folder / "in", folder / "out", **options)
        if way == 0:  # a zip of PyTorch
            path = folder / "a.pt"
            content = (seeds / f"{family}.pt").read_bytes()
            write_odd(path, damaged_zip(content, rng) if rng.random() < 0.7 else damaged(content, rng), rng)
            return lambda: read_model(family, path, folder / "out", offline=True)
        source = own_files[0].parent if way == 1 else seeds / family
        shutil.copytree(seeds / "own" if way == 1 else source, folder / "in")
        name = (
            rng.choice(own_files).relative_to(seeds / "own")
            if way == 1
            else ("config.json", "model.safetensors")[way % 2]
        )
        path = folder / "in" / name
        content = path.read_bytes()
        path.unlink()
        if path.suffix == ".json":
            changed = odd_json(json.loads(content), rng)
        elif path.suffix == ".safetensors" and rng.random() < 0.7:
            length = int.from_bytes(content[:8], "little")
            header = odd_json(json.loads(content[8 : 8 + length]), rng)
            changed = len(header).to_bytes(8, "little") + header + content[8 + length :]
        else:
            changed = damaged(content, rng)
        write_odd(path, changed, rng)
        if way == 1:
            return lambda: read_checkpoint(folder / "in")
        return lambda: read_model(family, folder / "in", folder / "out", offline=True)

    return door


DOORS: dict[str, Callable[[Path], Door]] = {
    "IMAGES": images,
    "LABELS": labels,
    "CHECKPOINTS": checkpoints,
    "SETTINGS": settings,
    "RESULTS": run_files,
}
