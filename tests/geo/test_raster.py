"""A GeoTIFF goes through in blocks and keeps its place on the ground."""

import json
from dataclasses import replace

import numpy as np
import pyogrio
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from gla_jax import Segmenter
from gla_jax.cli import main
from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.geo.blocks import Area, cut_blocks
from gla_jax.geo.raster import RasterTask, segment_raster
from gla_jax.geo.seams import Seams
from gla_jax.predict.examples import example_embeddings
from gla_jax.predict.predict import label_images
from gla_jax.support import places
from gla_jax.support.errors import UserError
from gla_jax.support.places import place
from gla_jax.text.prompts import parse_classes
from gla_jax.tiny_world.scenes import render

# Of affine, through rasterio, which does not use the new operator yet.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
NAMES = ["sand", "water", "brick", "grass", "wood", "gravel"]
CONFIG = SegmenterConfig(windows=WindowConfig(short_side=96, crop=64, stride=32))


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained("tiny-world", CONFIG)


def save(path, pixels, **more):
    """Pixels [h w bands] as a GeoTIFF of half a metre."""
    profile = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_200_000, 0.5, 0.5), "dtype": pixels.dtype}
    height, width, count = pixels.shape
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, **(profile | more)) as out:
        out.write(pixels.transpose(2, 0, 1))
    return path


@pytest.fixture
def source(tmp_path):
    """A scene of 200 x 260 pixels whose right edge is nodata."""
    pixels = render(3, 200, 260, "test").image.clip(1)
    pixels[:, 250:] = 0
    return save(tmp_path / "scene.tif", pixels, nodata=0)


def run(segmenter, source, folder, **options):
    folder.mkdir(exist_ok=True)
    task = RasterTask(segmenter, parse_classes(NAMES), block=96, **options)
    return segment_raster(task, source, folder, lambda text: None)


def test_labels_of_a_block_are_those_of_its_region_alone(tmp_path, segmenter, source):
    """The segmenter gives the same labels for the pixels of one block and a window around it."""
    run(segmenter, source, tmp_path / "out")
    with rasterio.open(source) as raster, rasterio.open(tmp_path / "out" / "labels.tif") as out:
        assert (out.crs, out.transform, out.shape) == (raster.crs, raster.transform, raster.shape)
        assert out.nodata == 255
        assert json.loads(out.tags()["classes"]) == NAMES
        pixels, labels = raster.read().transpose(1, 2, 0), out.read(1)
    assert (labels[:, 250:] == 255).all()
    assert (labels[:, :250] < len(NAMES)).all()
    core, region = np.s_[96:192, 96:192], np.s_[32:200, 32:256]  # a block of 96 and a halo of 64
    alone = segmenter.with_settings(short_side=168)(np.ascontiguousarray(pixels[region]), NAMES).labels
    assert (labels[core] == alone[64:160, 64:160]).all()


def test_a_window_of_the_raster_lies_where_it_was(tmp_path, segmenter, source):
    """The part has the labels that the whole has there, and its corner on the ground."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    run(segmenter, source, whole)
    run(segmenter, source, part, area=Area(96, 96, 96, 96))
    with rasterio.open(whole / "labels.tif") as a, rasterio.open(part / "labels.tif") as b:
        assert (a.read(1)[96:192, 96:192] == b.read(1)).all()
        assert b.xy(0, 0) == a.xy(96, 96)


def test_a_raster_from_and_to_a_store_is_that_of_the_disk(tmp_path, segmenter, source):
    """And goes on there: blocks that are objects are not done again."""
    store = place("memory://rasters")
    (store / "scene.tif").write_bytes(source.read_bytes())
    run(segmenter, source, tmp_path / "out", vectors=True)
    task = RasterTask(segmenter, parse_classes(NAMES), block=96, vectors=True)
    sentences = []
    for _ in range(2):
        segment_raster(task, store / "scene.tif", store / "out", sentences.append)
    assert sentences == [f"9 of 9 blocks were done before in {store / 'out'}; the rest follows."]
    assert (store / "out/labels.tif").read_bytes() == (tmp_path / "out/labels.tif").read_bytes()
    (tmp_path / "fetched.gpkg").write_bytes((store / "out/regions.gpkg").read_bytes())
    counts = [
        pyogrio.read_info(path)["features"] for path in (tmp_path / "fetched.gpkg", tmp_path / "out/regions.gpkg")
    ]
    assert counts[0] == counts[1]
    documents = [json.loads((out / "results.json").read_text()) for out in (store / "out", tmp_path / "out")]
    assert documents[0] | {"raster": ""} == documents[1] | {"raster": ""}
    store.fs.store.clear()


def test_a_raster_at_an_address_is_fetched_whole(tmp_path, segmenter, source, monkeypatch):
    """And named by its address, not by the file that it is for a while."""
    address = place("https://example.org/scene.tif?token=1")
    monkeypatch.setattr(places, "fetch_web", lambda address, path, most: path.write_bytes(source.read_bytes()))
    monkeypatch.setattr(places, "stamp_of_web", lambda address: [1, "mark"])
    run(segmenter, source, tmp_path / "local")
    document = run(segmenter, address, tmp_path / "out")
    assert document["raster"] == str(address)
    assert (tmp_path / "out/labels.tif").read_bytes() == (tmp_path / "local/labels.tif").read_bytes()
    with pytest.raises(UserError, match=r"^https://example\.org/scene\.tif\?token=1 has 3 bands and no band 9"):
        run(segmenter, address, tmp_path / "bands", bands=(1, 2, 9))


def test_it_goes_on_where_it_was_stopped(tmp_path, segmenter, source, monkeypatch):
    """Blocks that are done are not done again, and the result is the same to the byte."""
    run(segmenter, source, tmp_path / "whole")
    calls = []

    def stop(*words):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return label_images(*words)

    monkeypatch.setattr("gla_jax.geo.raster.label_images", stop)
    with pytest.raises(KeyboardInterrupt):
        run(segmenter, source, tmp_path / "out")
    assert not (tmp_path / "out" / "labels.tif").exists()
    run(segmenter, source, tmp_path / "out")
    assert len(calls) == 1 + 9
    for name in ("labels.tif", "results.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(UserError, match="other settings"):
        run(segmenter, source, tmp_path / "out", bands=(3, 2, 1))


def test_regions_cover_the_labels(tmp_path, segmenter, source):
    """Every pixel with a label lies in one polygon of its class, on the ground."""
    document = run(segmenter, source, tmp_path / "out", vectors=True)
    assert all(row["pairs"] > row["differ"] > 0 for row in document["edges"].values())
    info = pyogrio.read_info(tmp_path / "out" / "regions.gpkg")
    assert info["crs"] == "EPSG:32632"
    assert list(info["fields"]) == ["class", "name", "pixels"]
    _, _, geometry, (classes, names, pixels) = pyogrio.raw.read(tmp_path / "out" / "regions.gpkg")
    assert len(geometry) > 1
    assert {NAMES[value] for value in classes} == set(names)
    assert pixels.sum() == document["pixels"] == 200 * 250
    for name, share in document["shares"].items():
        assert pixels[names == name].sum() / document["pixels"] == pytest.approx(share, abs=1e-6)


def test_classes_that_labelled_images_show(tmp_path, source, monkeypatch, capsys):
    """They are encoded once for all blocks, whose sizes differ, as images of a block's size."""
    scene, shown, calls = render(3, 200, 260, "test"), tmp_path / "shown", []
    for name, pixels in (("images", scene.image), ("labels", scene.labels.astype(np.uint8))):
        (shown / name).mkdir(parents=True)
        Image.fromarray(pixels[:96, :96]).save(shown / name / "corner.png")
    present = sorted(set(scene.labels[:96, :96].ravel().tolist()))
    (shown / "classes.json").write_text(json.dumps({str(value): f"class {value}" for value in present}))

    def once(*words):
        calls.append(1)
        return example_embeddings(*words)

    monkeypatch.setattr("gla_jax.segmenter.example_embeddings", once)
    sizes = ["--short-side", "96", "--crop", "64", "--stride", "32", "--block", "96"]
    words = ["raster", str(source), "--model", "tiny-world", "--classes-from", str(shown), *sizes]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert calls == [1]
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert document["classes"] == [f"class {value}" for value in present]
    with rasterio.open(tmp_path / "out/labels.tif") as out:
        right = np.array(present)[out.read(1)[:96, :96]] == scene.labels[:96, :96]
    assert right.mean() > 0.9
    assert main([*words, "--classes", "sand", "--out", str(tmp_path / "both")]) == 2
    assert "leave out --classes" in capsys.readouterr().err


def test_values_of_other_bands_and_depths(tmp_path, segmenter, source):
    """16-bit values of chosen bands, scaled as the range says, give the labels of the 8-bit raster."""
    with rasterio.open(source) as raster:
        deep = raster.read().transpose(1, 2, 0).astype(np.uint16) * 10
    stack = np.concatenate([np.zeros_like(deep[..., :1]), deep[..., ::-1]], axis=2)  # nothing, blue, green, red
    save(tmp_path / "deep.tif", stack)
    run(segmenter, source, tmp_path / "out")
    run(segmenter, tmp_path / "deep.tif", tmp_path / "deep", bands=(4, 3, 2), value_range=(0, 2550))
    with rasterio.open(tmp_path / "out" / "labels.tif") as a, rasterio.open(tmp_path / "deep" / "labels.tif") as b:
        assert (a.read(1) == b.read(1))[:, :96].all()  # away from the nodata edge, which is black here


def test_overviews_and_colours(tmp_path, segmenter):
    pixels = np.tile(render(3, 64, 64, "test").image, (8, 9, 1))
    save(tmp_path / "wide.tif", pixels)
    segmenter = segmenter.with_settings(method="maskclip")
    task = RasterTask(segmenter, parse_classes(NAMES), block=256)
    (tmp_path / "out").mkdir()
    segment_raster(task, tmp_path / "wide.tif", tmp_path / "out", print)
    with rasterio.open(tmp_path / "out" / "labels.tif") as out:
        assert out.overviews(1) == [2]
        assert out.colormap(1)[0] == (206, 186, 140, 255)  # sand as it is drawn
        colour = out.colormap(1)[out.read(1)[0, 0]][:3]
    with Image.open(tmp_path / "out" / "labels.tif") as viewed:  # by a viewer that is not GDAL
        assert viewed.convert("RGB").getpixel((0, 0)) == colour


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--bands", "1,2,9"], "has 3 bands and no band 9"),
        (["--bands", "1,2"], "is not 3 numbers"),
        (["--range", "5,5"], "does not rise"),
        (["--range", "nan,5"], "is not 2 numbers"),
        (["--window", "0,0,300,10"], "reaches beyond the 260 x 200 pixels"),
        (["--window", "0,0,0,10"], "is no part of an image"),
        (["--block", "8000"], "give a smaller --block"),
    ],
)
def test_wrong_words_get_a_sentence(source, tmp_path, capsys, words, sentence):
    classes = [word for name in NAMES for word in ("--classes", name)]
    out = ["--out", str(tmp_path / "out"), "--model", "tiny-world"]
    assert main(["raster", str(source), *classes, *out, *words]) == 2
    assert sentence in capsys.readouterr().err


def test_other_files_are_refused(tmp_path, segmenter, source):
    """A VRT could open any file of the machine; a truncated raster must not look complete."""
    (tmp_path / "x.tif").write_text(f'<VRTDataset rasterXSize="9" rasterYSize="9">{source}</VRTDataset>')
    with pytest.raises(UserError, match="cannot be read as a GeoTIFF"):
        run(segmenter, tmp_path / "x.tif", tmp_path / "vrt")
    (tmp_path / "cut.tif").write_bytes(source.read_bytes()[:90_000])
    with pytest.raises(UserError, match="damaged"):
        run(segmenter, tmp_path / "cut.tif", tmp_path / "cut")
    assert not (tmp_path / "cut" / "labels.tif").exists()


def test_a_raster_without_a_place_or_without_data_says_so(tmp_path, capsys, recwarn):
    """In our words, once, and not as warnings of the libraries about matrices."""
    save(tmp_path / "scene.tif", np.zeros((40, 50, 3), np.uint8), crs=None, transform=None, nodata=0)
    words = [word for name in NAMES for word in ("--classes", name)] + ["--model", "tiny-world", "--vectors"]
    assert main(["raster", str(tmp_path / "scene.tif"), *words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "scene.tif does not say where it lies on the ground, and neither will its labels." in said
    assert "holds data, so none has a label" in said
    assert "warning" not in said
    assert "1 block segmented" in said


def test_an_address_that_does_not_answer_gets_its_reason_and_no_folder_is_left(tmp_path, source, capsys):
    words = [word for name in NAMES for word in ("--classes", name)] + ["--model", "tiny-world"]
    out = ["--out", str(tmp_path / "new" / "out")]
    for address, reason in (
        ("https://127.0.0.1:1/x.tif", "Connection refused"),
        ("http://x/y.tif", "http:// is not read"),
    ):
        assert main(["raster", address, *words, *out]) == 2
        assert f"{address} cannot be read ({reason}" in capsys.readouterr().err
    assert main(["raster", str(source), *words, *out, "--window", "0,0,999,9"]) == 2
    assert not (tmp_path / "new").exists()


def test_the_raster_itself_is_not_replaced_by_its_labels(tmp_path, segmenter, source):
    source.rename(tmp_path / "labels.tif")
    before = (tmp_path / "labels.tif").read_bytes()
    with pytest.raises(UserError, match=r"labels\.tif is the file that the labels go to; choose another --out"):
        run(segmenter, tmp_path / "labels.tif", tmp_path)
    assert (tmp_path / "labels.tif").read_bytes() == before


def test_blocks_cover_an_area_once():
    native = replace(CONFIG, windows=replace(CONFIG.windows, short_side=None))
    blocks = cut_blocks(Area(10, 20, 205, 150), Area(0, 0, 400, 300), 100, native)
    seen = np.zeros((400, 300), int)
    for block in blocks:
        seen[block.core.within(Area(0, 0, 400, 300))] += 1
        assert block.region.row == max(block.core.row - 64, 0)
        assert block.region.column + block.region.width == min(block.core.column + block.core.width + 64, 300)
    assert (seen[10:215, 20:170] == 1).all()
    assert seen.sum() == 205 * 150


def test_no_background_is_spelled_as_for_photos(source, tmp_path):
    """`none` is no class of that name, as in `gla-jax segment`."""
    words = [word for name in NAMES for word in ("--classes", name)] + ["--background", "none", "--block", "256"]
    sizes = ["--short-side", "96", "--crop", "64", "--stride", "32"]
    assert main(["raster", str(source), "--model", "tiny-world", *words, *sizes, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["classes"] == NAMES


def test_flips_at_edges_of_blocks_are_counted_apart():
    """Labels that change at every edge of a block and nowhere else must show there alone; nodata is in no pair."""
    area, config = Area(10, 20, 205, 150), CONFIG.windows
    blocks = cut_blocks(area, Area(0, 0, 400, 300), 96, CONFIG)
    seams = Seams(area, config, 1.0, 255)
    whole = np.zeros((205, 150), int)
    for number, block in enumerate(blocks):
        whole[block.core.within(area)] = number
    whole[:, 30:40] = 255
    for block in blocks:
        seams.add(block, whole[block.core.within(area)])
    edges = seams.document()
    valid = whole != 255
    pairs = valid.sum(1)[95] + valid.sum(1)[191] + 205  # rows 96 and 192, column 96
    assert edges["blocks"] == {"pairs": int(pairs), "differ": int(pairs), "percent": 100.0}
    assert edges["windows"]["differ"] == edges["between"]["differ"] == 0
    assert min(edges["windows"]["pairs"], edges["between"]["pairs"]) > 0


def test_flips_at_edges_of_windows_are_where_the_windows_are():
    """As `gla-jax eval` places them: a block's windows begin with its halo, at the block's own scale."""
    block = cut_blocks(Area(96, 96, 96, 96), Area(0, 0, 400, 400), 96, CONFIG)[0]
    resized, starts = 224, range(0, 224 - 64 + 1, 32)  # 96 pixels and a halo of 64 on each side; short side 96 of 96
    edges = sorted({*starts, *(start + 64 for start in starts)} - {0, resized})
    labels = np.zeros((224, 224), int)
    for edge in edges:
        labels[:, edge:] += 1
    seams = Seams(Area(96, 96, 96, 96), CONFIG.windows, 1.0, 255)
    seams.add(block, labels[64:160, 64:160])
    counts = seams.document()
    inner = [edge for edge in edges if 64 < edge < 160]
    assert counts["windows"] == {"pairs": 2 * 96 * len(inner), "differ": 96 * len(inner), "percent": 50.0}
    assert counts["between"]["differ"] == counts["blocks"]["pairs"] == 0
