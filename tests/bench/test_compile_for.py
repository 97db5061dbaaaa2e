"""Programs compiled for chips that are not here: what a user plans a reservation with."""

import importlib.util
import json
from types import SimpleNamespace

import jax
import pytest

from gla_jax.bench import chips, plan_report
from gla_jax.bench.chips import CHIPS, Target
from gla_jax.bench.plan import Compiled, Plan, compile_program, part_costs
from gla_jax.bench.products import Products, Way
from gla_jax.bench.programs import Program
from gla_jax.bench.sizes import model_specs, named_spec
from gla_jax.bench.traffic import Traffic
from gla_jax.cli import main
from gla_jax.models.registry import MODELS
from tests.small_models import IMAGE, VFM, random_pair

SMALL = ["--size", "48x64", "--crop", "32", "--stride", "16", "--prompts", "3", "--dtype", "bfloat16"]
WHEELS = {"tpu": ("libtpu", "libtpu"), "gpu": ("jax_plugins", "jax[cuda13]")}


def bench(folder, *options):
    return main(["bench", "--model", str(folder / "model"), *SMALL, *options, "--out", str(folder / "out")])


def compiled(folder, *options):
    platform = options[1].partition(":")[0]
    package, wheel = WHEELS[platform]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the wheel {wheel} is not installed")
    random_pair(folder / "model")
    assert bench(folder, *options) == 0
    return json.loads((folder / "out/compile.json").read_text())


@pytest.mark.parametrize("target", ["tpu:v5e:1x1", "gpu:h100"])
def test_an_image_is_compiled_for_a_chip_that_is_not_here(target, tmp_path, capsys):
    found = compiled(tmp_path, "--compile-for", target, "--precision", "highest")
    page = capsys.readouterr().out
    assert found["fits"]
    assert 0 < found["needed"] < 100e6
    image, _, tile = found["programs"]
    assert (image["name"], image["runs"], tile["name"]) == ("image", 1, "label_tile")
    assert image["arguments"] > 0
    assert image["total"] == sum(image[name] for name in ("arguments", "output", "temporary", "code", "beside"))
    parts = {part["name"]: part for part in found["parts"]}
    assert [name for name in parts if name != "rest"] == ["towers", "anchors", "attention", "projection", "labels"]
    assert set(parts["towers"]["flops"]) == {"bfloat16"}
    # Two iterations of similarities and sums over 6 windows of 16 tokens of 8 numbers.
    assert sum(parts["anchors"]["flops"].values()) == 2 * 2 * 2 * (6 * 16) ** 2 * 8
    assert all(part["seconds"] > 0 for part in found["parts"])
    assert parts["towers"]["moved"] > 0  # the rest may stay on a TPU
    assert found["seconds"] == pytest.approx(sum(part["seconds"] for part in found["parts"]))
    assert not found["loops_of_unknown_length"]
    assert f"{target}: mesh 1x1" in page
    assert "| towers" in page


def test_a_mesh_sends_keys_and_values_round_its_ring(tmp_path):
    found = compiled(tmp_path, "--compile-for", "tpu:v5e:2x2", "--mesh", "1x4")
    parts = {part["name"]: part for part in found["parts"]}
    # 8 windows over 4 chips: each iteration a chip's keys go round three times, or four where the last is not awaited.
    keys = 2 * 16 * 8 * 4
    assert 2 * 3 * keys <= parts["anchors"]["sent"]["collective-permute"] <= 2 * 4 * (keys + 2 * 16 * 16 * 4 + 64)
    assert parts["towers"]["sent"] == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compile-for", "tpu:v9:2x4"], "'tpu:v9' is not a chip to compile for; did you mean tpu:v"),
        (["--compile-for", "gpu:"], "'gpu:' is not a chip to compile for; did you mean gpu:h100?"),
        (["--compile-for", "tpu:v5e"], "lacks the shape of the slice in chips; write it as in tpu:v5e:2x4"),
        (["--compile-for", "tpu:v5e:0x4"], "lacks the shape of the slice"),
        (["--compile-for", "gpu:h100:2"], "has a shape, which GPUs have not"),
        (["--compile-for", "tpu:v5e:2x4", "--mesh", "1x3"], "the mesh 1x3 needs 3 chips, but tpu:v5e:2x4 has 8"),
        (["--compile-for", "tpu:v5e:2x4", "--mesh", "8"], "mesh '8' is not DATAxWINDOW"),
        (["--compile-for", "gpu:h100", "--mesh", "4x4"], "needs 16 GPUs, but a host has 8"),
        (["--compile-for", "gpu:h100", "--sweep"], "--sweep is of programs that run"),
        (["--compile-for", "gpu:h100", "--devices", "2"], "--devices is of programs that run"),
        (["--compile-for", "gpu:h100", "--size", "9"], "size '9' is not HEIGHTxWIDTH"),
        (["--compile-for", "gpu:h100", "--precision", "low"], "low"),
        (["--mesh", "1x4"], "--mesh belongs to --compile-for"),
    ],
)
def test_a_wrong_option_is_one_sentence(options, words, tmp_path, capsys):
    assert bench(tmp_path, *options) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "extra"), [("tpu:v6e:1x1", "gla-jax[compile-tpu]"), ("gpu:h100", "gla-jax[compile-gpu]")]
)
def test_a_missing_wheel_is_named(target, extra, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    random_pair(tmp_path / "model")
    assert bench(tmp_path, "--compile-for", target) == 2
    message = capsys.readouterr().err
    assert extra in message
    assert "MB" in message


def test_a_slice_that_does_not_exist_is_refused(monkeypatch):
    from jax.experimental import topologies

    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such slice\nand more")

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(chips.UserError, match=r"not compile for tpu:v5e:3x3 \(INVALID_ARGUMENT: no such slice"):
        Target.read("tpu:v5e:3x3").devices(9)


PUBLISHED = {  # millions of parameters of the image towers, as their papers and model cards give them
    "clip-vit-base-patch16": 86,
    "clip-vit-large-patch14": 304,
    "laion-clip-vit-huge-patch14": 632,
    "laion-clip-vit-bigg-patch14": 1845,
    "tinyclip-vit-8m-patch16": 8,
    "siglip2-base-patch16": 86,
    "siglip2-large-patch16-256": 304,
    "siglip2-so400m-patch14": 412,
    "tipsv2-base-patch14": 86,
    "tipsv2-large-patch14": 304,
    "metaclip2-base-patch16": 86,
    "metaclip2-large-patch14": 304,
    "metaclip2-huge-patch14-378": 632,
    "metaclip2-bigg-patch14": 1845,
}


@pytest.mark.parametrize(
    "name", [*PUBLISHED, *(name for name, model in MODELS.items() if model.family not in ("clip", "siglip"))]
)
def test_sizes_by_name_are_those_of_the_weights(name):
    """Sizes are typed from tables: a wrong one would plan another model. A block holds 4C^2 + 2Ch weights."""
    spec = named_spec(name)
    maps = 3 if getattr(spec, "activation", "") == "swiglu" else 2
    millions = spec.depth * (4 * spec.width**2 + maps * spec.width * spec.mlp_width) / 1e6
    assert millions == pytest.approx(PUBLISHED.get(name, MODELS[name].millions), rel=0.06)
    assert spec.width % spec.num_heads == 0
    of_family = {"dinov3": 4, "tipsv2": 1}.get(MODELS[name].family, 0)
    assert getattr(spec, "registers", 0) == (4 if "registers" in name else of_family)


def test_a_folder_gives_its_own_sizes_without_its_weights(tmp_path):
    folder = random_pair(tmp_path / "model")
    for part in ("clip", "vfm"):
        (folder / part / "params").rename(tmp_path / f"{part}-elsewhere")
    assert model_specs(str(folder)) == (IMAGE, VFM)
    assert model_specs("clip-vit-base-patch16")[1] is None


def small_plan(**changes):
    flops = {("towers", Way("bfloat16")): 989.4e9, ("attention", Way("TF32", 3)): 494.7e9}
    traffic = Traffic()
    traffic.moved.update({"towers": 6.7e9, "attention": 1e6})
    traffic.sent["attention", "collective-permute"] = 4.5e9
    traffic.calls["attention", "collective-permute"] = 7
    parts = tuple(part_costs(Products(flops), traffic, CHIPS["gpu:h100"]))
    head = {
        "target": "gpu:h100",
        "mesh": [1, 2],
        "version": "0.1",
        "jax": "0.10",
        "compiler": "libtpu 0.0.52",
        "date": "2026-11-27",
        "model": {"name": "random"},
        "image": {"size": [336, 504], "windows": 8, "tokens": 6272, "queries": 21},
        "settings": {"dtype": "bfloat16", "method": {"precision": "high"}},
    }
    program = Compiled("image", 1, 2.0, 2**20, 2**20, 2**21, 0)._replace(**changes)
    return Plan(head, CHIPS["gpu:h100"], (program,), parts)


def test_the_least_time_is_that_of_the_slowest_of_products_memory_and_links():
    """1 ms of bfloat16 products against 2 ms of memory; 3 ms of three TF32 passes against 10 ms of links."""
    plan = small_plan()
    towers, attention = plan.parts
    assert (towers.compute, towers.memory, towers.seconds) == pytest.approx((1e-3, 2e-3, 2e-3))
    assert (attention.compute, attention.link, attention.seconds) == pytest.approx((3e-3, 10e-3, 10e-3))
    assert (plan.ratio("compute"), plan.ratio("seconds"), plan.seconds) == pytest.approx((3, 5, 12e-3))
    page = plan_report.plain(plan)
    assert "Fits: 4.0 MiB of 79.11 GiB. At least 12 ms for an image." in page
    assert "Attention with its anchors over towers: 3.00 by products, 5.00 by roofline." in page
    assert "TF32 x3, 7 collective-permute" in page
    assert "link ms" in page
    assert "beside |" not in page  # a column in which nothing stands


def test_a_program_that_xla_refuses_does_not_fit():
    refused = "RESOURCE_EXHAUSTED: 20.00G of 15.75G hbm"
    plan = small_plan(arguments=None, refused=refused)
    assert (plan.fits, plan.needed) == (False, None)
    page = plan_report.plain(plan)
    assert "Does not fit: more than there is" in page
    assert refused in page


def test_a_program_that_xla_cannot_read_back_has_its_products_alone(monkeypatch):
    """libtpu compiles some programs for v6e and then fails on its own text of them."""
    sizes = SimpleNamespace(**dict.fromkeys(("argument", "output", "alias", "temp", "generated_code"), 0))
    sizes = SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in vars(sizes).items()})

    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nstack")

    compiled = SimpleNamespace(memory_analysis=lambda: sizes, as_text=fail)
    lowered = SimpleNamespace(compile=lambda **_: compiled)
    monkeypatch.setattr(jax.stages.Traced, "lower", lambda traced, **_: lowered)
    square = Program("square", lambda x: x @ x, (jax.ShapeDtypeStruct((8, 8), "float32"),), part="towers")
    found, products, traffic = compile_program(square, CHIPS["tpu:v6e"])
    assert (found.unread, found.total, traffic.moved.total()) == ("INTERNAL: RET_CHECK failure", 0, 0)
    assert sum(products.flops.values()) == 2 * 8**3
    page = plan_report.plain(small_plan(unread=found.unread))
    assert "Bytes of image are not counted, its times are of products alone" in page


def test_a_terminal_shows_the_same_figures(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    plan_report.print_plan(small_plan())
    shown = capsys.readouterr().out
    assert "\x1b[1m" in shown
    assert "TF32 x3" in shown
    assert "4.0 MiB" in shown
