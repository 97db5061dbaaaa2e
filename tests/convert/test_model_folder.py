"""Whole conversions: a published file in, a model folder out."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import CLIPTokenizerFast

from gla_jax.checkpoints.model_folder import flatten_params, read_checkpoint
from gla_jax.cli import main
from gla_jax.convert import convert, convert_state
from gla_jax.support.errors import ConversionError, ModelError
from tests.convert import published
from tests.convert.published import hub_names, openai_names, saved, torchscript, write_tokenizer

OPENAI_VOCABULARY = 49408
HEADS = {"num_heads": 4, "text_heads": 5}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP model with OpenAI's vocabulary: the module, its tensors and its configuration as saved."""
    model = published.clip_model(OPENAI_VOCABULARY)
    return model, *saved(model, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    published.dino_model().save_pretrained(folder)
    return folder


def safetensors_folder(model, state, folder):
    model.save_pretrained(folder)
    return folder, {}


def sharded_folder(model, state, folder):
    model.save_pretrained(folder, max_shard_size="2MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder, {}


def bin_folder(model, state, folder):
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder, {}


def openai_archive(model, state, folder):
    buffers = {"input_resolution": torch.tensor(24), "context_length": torch.tensor(9), "vocab_size": torch.tensor(9)}
    torchscript(openai_names(state), buffers).save(str(folder / "ViT-B-16.pt"))
    return folder / "ViT-B-16.pt", HEADS


def open_clip_checkpoint(model, state, folder):
    named = {f"module.{name}": tensor for name, tensor in openai_names(state).items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": named}, folder / "epoch_3.pt")
    return folder / "epoch_3.pt", {**HEADS, "activation": "quick_gelu"}


def sharded_bin_folder(model, state, folder):
    model.config.save_pretrained(folder)
    names = sorted(model.state_dict())
    shards = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for shard in set(shards.values()):
        torch.save({name: x for name, x in model.state_dict().items() if shards[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return folder, {}


def open_clip_bin_folder(model, state, folder):
    source, options = open_clip_folder(model, state, folder)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(openai_names(state), folder / "open_clip_pytorch_model.bin")
    return source, options


def open_clip_folder(model, state, folder):
    save_file({name: x.contiguous() for name, x in openai_names(state).items()}, folder / "open_clip_model.safetensors")
    sizes = {"vision_cfg": {"width": 32, "head_width": 8}, "text_cfg": {"heads": 5}, "quick_gelu": True}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes}))
    return folder, {}


CLIP_FORMATS = (
    safetensors_folder,
    sharded_folder,
    bin_folder,
    sharded_bin_folder,
    openai_archive,
    open_clip_checkpoint,
    open_clip_folder,
    open_clip_bin_folder,
)


@pytest.mark.parametrize("write", CLIP_FORMATS, ids=lambda write: write.__name__)
def test_every_format_of_clip_gives_one_model(write, clip, tmp_path):
    model, state, config = clip
    (tmp_path / "source").mkdir()
    source, options = write(model, state, tmp_path / "source")
    manifest = convert("clip", source, tmp_path / "out", **options)
    loaded = read_checkpoint(tmp_path / "out")
    spec, params, *_ = convert_state("clip", state, config)
    assert loaded.spec == spec
    assert loaded.family == "clip"
    for path, leaf in flatten_params(params).items():
        np.testing.assert_array_equal(flatten_params(loaded.params)[path], leaf, err_msg=path)
    check_manifest(manifest, source, tmp_path / "out", flatten_params(params))
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab_size() == OPENAI_VOCABULARY


HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]}


def test_pixels_are_normalised_as_the_model_was_trained(tiny_clip, tmp_path):
    write_tokenizer(tiny_clip)
    (tiny_clip / "preprocessor_config.json").write_text(json.dumps(HALF))
    manifest = convert("clip", tiny_clip, tmp_path / "out")
    spec = read_checkpoint(tmp_path / "out").spec.image
    assert (spec.pixel_mean, spec.pixel_std) == ((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    assert "preprocessor_config.json" in manifest["files"]


def test_a_preprocessor_that_means_nothing_is_named(dino_folder, tmp_path):
    shutil.copytree(dino_folder, tmp_path / "source")
    path = tmp_path / "source" / "preprocessor_config.json"
    three = "not three numbers each"
    odd = ({"image_mean": 3}, {**HALF, "image_mean": [0.5, 0.5, 124]}, {**HALF, "image_std": [1e-30, 1, 1]})
    for content, reason in (*((content, three) for content in odd), (HALF, "use ImageNet's alone")):
        path.write_text(json.dumps(content))
        with pytest.raises(ConversionError, match=reason) as caught:
            convert("dino", tmp_path / "source", tmp_path / "out")
        assert str(tmp_path / "source") in str(caught.value)


def check_manifest(manifest: dict, source: Path, out: Path, params: dict) -> None:
    """Every file is hashed, every target has a source, every source a target or a reason."""
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert manifest["source"] == str(source)
    assert manifest["format"] == "gla-jax manifest 1"
    folder = source if source.is_dir() else source.parent
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    records = manifest["tensors"].values()
    targets = [target for record in records for target in record.get("targets", ())]
    assert sorted(targets) == sorted(params)
    assert all(record.get("targets") or record["dropped"] for record in records)
    assert "dropped" in manifest["tensors"].get("logit_scale", manifest["tensors"].get("module.logit_scale"))


@pytest.mark.parametrize("family", ["dino", "dinov2"])
def test_files_of_torch_hub(family, tmp_path):
    model = published.dino_model() if family == "dino" else published.dinov2_model(registers=4)
    state, config = saved(model, tmp_path)
    torch.save(hub_names(state), tmp_path / "pretrain.pth")
    manifest = convert(family, tmp_path / "pretrain.pth", tmp_path / "out", num_heads=4)
    assert manifest["options"] == {"heads": 4}
    loaded, expected = read_checkpoint(tmp_path / "out"), convert_state(family, state, config)
    assert loaded.spec.num_heads == 4
    for path, leaf in flatten_params(expected.params).items():
        np.testing.assert_array_equal(flatten_params(loaded.params)[path], leaf, err_msg=path)
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_half_precision_files_become_float32(dino_folder, tmp_path):
    model = published.dino_model().bfloat16()
    torch.save(model.state_dict(), tmp_path / "half.pth")
    convert("dino", tmp_path / "half.pth", tmp_path / "out", num_heads=4)
    leaf = read_checkpoint(tmp_path / "out").params["norm"]["scale"]
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, model.layernorm.weight.float().detach().numpy())


@pytest.fixture
def tiny_clip(tmp_path):
    """A CLIP folder with a vocabulary of its own."""
    published.clip_model().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


TEXTS = ["ab a", "  B\tAB ", "aab"]


def test_a_tokenizer_is_built_of_vocabulary_and_merges(tiny_clip, tmp_path):
    write_tokenizer(tiny_clip)
    manifest = convert("clip", tiny_clip, tmp_path / "out")
    assert {"vocab.json", "merges.txt"} <= manifest["files"].keys()
    ours = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    theirs = CLIPTokenizerFast.from_pretrained(tiny_clip)
    assert [ours.encode(text).ids for text in TEXTS] == [theirs(text).input_ids for text in TEXTS]
    assert ours.encode("ab a").ids == [5, 4, 2, 6]


def test_a_tokenizer_of_the_source_is_kept(tiny_clip, tmp_path):
    write_tokenizer(tiny_clip)
    CLIPTokenizerFast.from_pretrained(tiny_clip).save_pretrained(tiny_clip)
    convert("clip", tiny_clip, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tiny_clip / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "put the model's own tokenizer.json beside its weights"),
        ({"tokenizer.json": "{}"}, "its tokenizer.json cannot be read"),
        ({"vocab.json": "{", "merges.txt": "x"}, "vocab.json is not JSON"),  # through the one door for JSON
        ({"vocab.json": "{}", "merges.txt": "x"}, "its vocab.json and merges.txt cannot be read"),
    ],
    ids=["missing", "damaged", "damaged vocabulary", "damaged merges"],
)
def test_a_tokenizer_that_does_not_fit_is_said(files, reason, tiny_clip, tmp_path):
    for name, content in files.items():
        (tiny_clip / name).write_text(content)
    with pytest.raises(ConversionError, match=reason) as caught:
        convert("clip", tiny_clip, tmp_path / "out")
    assert str(caught.value).startswith(f"{tiny_clip}: ")
    assert not (tmp_path / "out").exists()


def test_failures_name_the_source_and_leave_nothing(dino_folder, tmp_path):
    with pytest.raises(ConversionError, match="says it is a 'vit' model") as caught:
        convert("dinov2", dino_folder, tmp_path / "out")
    assert str(caught.value).startswith(f"{dino_folder}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_folder_is_left_alone(dino_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ModelError, match="exists already"):
        convert("dino", dino_folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


WRITES_FOR_A_WHILE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would this one
sys.modules["torch"] = None  # importing it fails
from gla_jax.checkpoints import model_folder as checkpoint
from gla_jax.convert import convert

def save(folder, params, write=checkpoint.save_params):
    print("writing", flush=True)
    sys.stdin.readline()  # Orbax writes on in its own threads, whatever happens to the main one
    write(folder, params)

checkpoint.save_params = save
convert("dino", sys.argv[1], sys.argv[2], num_heads=4)
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["Ctrl-C", "ended", "killed"])
def test_a_run_that_is_stopped_while_it_writes_leaves_no_model(stop, dino_folder, tmp_path):
    source, out = tmp_path / "pretrain.pth", tmp_path / "made" / "for it" / "out"
    torch.save(load_file(dino_folder / "model.safetensors"), source)
    command = [sys.executable, "-c", WRITES_FOR_A_WHILE, str(source), str(out)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            assert process.stdout.readline() == "writing\n"
            process.send_signal(stop)
            if stop != signal.SIGKILL:
                time.sleep(0.1)
                process.send_signal(stop)  # nor does impatience
                process.stdin.write("write\n")
                process.stdin.flush()
            process.wait(timeout=60)
        finally:
            process.kill()
    assert process.returncode == {signal.SIGINT: -2, signal.SIGTERM: 143, signal.SIGKILL: -9}[stop]
    assert not out.exists()
    if stop == signal.SIGKILL:
        (left,) = out.parent.iterdir()
        os.utime(left, (0, 0))  # one of this minute could be a run that is about to lock it
    else:
        assert [path.name for path in tmp_path.iterdir()] == ["pretrain.pth"]
    convert("dino", source, out, num_heads=4)
    assert read_checkpoint(out).spec.width == 32
    assert [path.name for path in out.parent.iterdir()] == ["out"]  # of the killed run, nothing either


@pytest.mark.parametrize(
    ("options", "torch_there", "reason"),
    [
        (["--verify", "--image", "missing.png"], True, "missing.png"),
        (["--verify"], False, "install torch, or convert without --verify"),
        (["--image", "photo.png"], True, "photo.png is only looked at by --verify"),
        (["--heads", "5"], True, "5 attention heads do not divide the width 32"),
    ],
    ids=["missing image", "no torch", "lone image", "heads that do not divide"],
)
def test_the_command_says_what_is_missing_before_it_converts(
    options, torch_there, reason, dino_folder, tmp_path, monkeypatch, capsys
):
    """After it, the folder would be there, and the command with its mistake mended would refuse to touch it."""
    monkeypatch.chdir(tmp_path)
    if not torch_there:
        monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["convert", "dino", str(dino_folder), "out", *options]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert reason in said
    assert list(tmp_path.iterdir()) == []


def test_the_command_converts_and_verifies(dino_folder, tmp_path, capsys):
    assert main(["convert", "dino", str(dino_folder), str(tmp_path / "out"), "--verify"]) == 0
    assert "every stage agrees" in capsys.readouterr().out
