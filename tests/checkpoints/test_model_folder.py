"""Model folders: what is written loads to the same bits; what is damaged or half-written is never loaded."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore

from gla_jax.checkpoints.model_folder import (
    ClipSpec,
    digest,
    model_digest,
    read_checkpoint,
    read_spec,
    write_checkpoint,
)
from gla_jax.support.errors import ModelError
from gla_jax.support.new_folder import check_new_folder, folder_written_beside
from gla_jax.text.embeddings import load_tokenizer, text_embeddings
from gla_jax.text.prompts import parse_classes
from gla_jax.tiny_world.vocabulary import tokenizer_files
from gla_jax.towers.dino import DinoSpec
from tests.small_models import random_params, small_clip

SPEC = DinoSpec(image_size=32, patch_size=8, width=8, depth=1, num_heads=2, mlp_width=8)


@pytest.fixture
def params():
    return random_params(SPEC, 0)


@pytest.fixture
def folder(tmp_path, params):
    write_checkpoint(tmp_path / "model", SPEC, params, {"source": "random"})
    return tmp_path / "model"


def test_a_folder_loads_to_the_same_bits(folder, params):
    loaded = read_checkpoint(folder)
    assert (loaded.family, loaded.spec) == ("dino", SPEC)
    assert json.loads((folder / "config.json").read_text())["params_sha256"] == digest(params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert json.loads((folder / "manifest.json").read_text()) == {"source": "random"}


def test_device_arrays_share_the_memory_of_what_was_loaded(folder):
    """On a processor the weights of a model would be there twice."""
    params = read_checkpoint(folder).params
    for host in jax.tree.leaves(params):
        assert jax.device_put(host, may_alias=True).unsafe_buffer_pointer() == host.ctypes.data


def test_folders_of_an_earlier_version_load(folder, params):
    config = json.loads((folder / "config.json").read_text())
    del config["spec"]["position_offset"], config["folder_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    assert read_checkpoint(folder).spec.position_offset == 0.0


def test_the_hash_of_a_model_is_of_all_that_decides_what_it_computes(tmp_path, monkeypatch):
    """Else the cached text features of one conversion would be taken for those of another of the same weights."""
    spec, params = small_clip(), random_params(small_clip(), 0)
    gelu = ClipSpec(spec.image, dataclasses.replace(spec.text, activation="gelu"))
    grey = ClipSpec(dataclasses.replace(spec.image, pixel_mean=(0.5, 0.5, 0.5)), spec.text)
    templates = ("a {}.",)
    write_checkpoint(tmp_path / "own", spec, params, {"source": "random"}, tokenizer_files(), templates)
    write_checkpoint(tmp_path / "gelu", gelu, params, {"source": "another"}, tokenizer_files(), templates)
    own, other = (read_checkpoint(tmp_path / name) for name in ("own", "gelu"))
    words = tokenizer_files()["tokenizer.json"]
    assert own.sha256 == model_digest(spec, digest(params), words, templates)
    changed = [
        (gelu, digest(params), words, templates),
        (grey, digest(params), words, templates),
        (spec, digest(params) + "0", words, templates),
        (spec, digest(params), words + b" ", templates),
        (spec, digest(params), words, None),
    ]
    assert len({own.sha256, *(model_digest(*given) for given in changed)}) == 1 + len(changed)

    encoded = []

    def encode(params, text, tokenizer, texts):
        encoded.append(text.activation)
        return np.ones((len(texts), text.embed_dim), np.float32)

    monkeypatch.setattr("gla_jax.text.embeddings.encode_texts", encode)
    for model in (own, other, own):
        text_embeddings(model, load_tokenizer(model.folder), parse_classes(["water"]), ["{}"], tmp_path / "cache")
    assert encoded == ["quick_gelu", "gelu"]


def test_a_spec_of_other_pixels_loads_as_it_was_written(tmp_path):
    spec = ClipSpec(dataclasses.replace(small_clip().image, pixel_mean=(0.5, 0.5, 0.5)), small_clip().text)
    write_checkpoint(tmp_path / "model", spec, random_params(spec, 0), {})
    loaded = read_spec(tmp_path / "model")[1]
    assert loaded == spec
    hash(loaded)  # a static argument of every program


def test_half_precision_storage_loads_as_float32(tmp_path, params):
    write_checkpoint(tmp_path / "half", SPEC, params, {}, storage_dtype="bfloat16")
    loaded = read_checkpoint(tmp_path / "half").params
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=2**-8), loaded, params)


def test_a_taken_folder_is_left_alone(folder, params):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ModelError, match="exists already"):
        write_checkpoint(folder, SPEC, params, {})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(stop, tmp_path):
    (tmp_path / "there").mkdir()

    def write_half(target):
        with folder_written_beside(target) as beside:
            (beside / "config.json").write_text("{}")
            raise stop

    expected = pytest.raises(ModelError, match=r"cannot be made \(No space left") if isinstance(stop, OSError) else None
    for target in (tmp_path / "model", tmp_path / "there", tmp_path / "made" / "for it" / "model"):
        with expected or pytest.raises(stop):
            write_half(target)
        assert list(tmp_path.iterdir()) == [tmp_path / "there"]


def test_signals_are_left_as_they_were(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with folder_written_beside(tmp_path / "model"):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path):
    killed, other, mine = (
        tmp_path / name for name in (".model-0123abcd.unfinished", ".model2-0123abcd.unfinished", ".model-backup")
    )
    for folder in (killed, other, mine):
        folder.mkdir()
        (folder / "file").write_text("")
        grow_old(folder)
    with folder_written_beside(tmp_path / "model") as running:
        grow_old(running)
        with pytest.raises(KeyboardInterrupt), folder_written_beside(tmp_path / "model"):
            raise KeyboardInterrupt  # of a second run beside the first
        assert running.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"model", other.name, mine.name}


def grow_old(folder):
    os.utime(folder, (time.time() - 90,) * 2)


def test_a_folder_whose_run_has_yet_to_lock_it_is_kept(tmp_path):
    """Else a second run for the same target would take it from under the first one."""
    started = tmp_path / ".model-0123abcd.unfinished"
    started.mkdir()
    with folder_written_beside(tmp_path / "model"):
        assert started.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file/x/out", "file is a file"), ("n" * 300, "too long"), ("new/" + "n" * 300, "too long")],
)
def test_a_folder_that_cannot_be_made_is_one_sentence(name, reason, tmp_path, params):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=rf"cannot be made.*{reason}.*name another folder") as caught:
        write_checkpoint(tmp_path / name, SPEC, params, {})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_folder_where_nothing_can_be_made_is_one_sentence():
    with pytest.raises(ModelError, match="/proc/out cannot be made"):
        check_new_folder(Path("/proc/out"))


def test_parameters_of_another_spec_are_refused(tmp_path, params):
    wider = DinoSpec(image_size=32, patch_size=8, width=16, depth=1, num_heads=2, mlp_width=8)
    with pytest.raises(ValueError, match="do not fit the spec at"):
        write_checkpoint(tmp_path / "model", wider, params, {})
    assert list(tmp_path.iterdir()) == []


def largest_file(folder):
    return max(
        (path for path in (folder / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


@pytest.mark.parametrize("damage", ["cut", "changed", "removed"])
def test_damaged_weights_are_never_loaded(folder, damage):
    path = largest_file(folder)
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        half = len(content) // 2
        path.write_bytes(content[:half] if damage == "cut" else content[:half] + b"\x00\xff" * 8 + content[half + 16 :])
    with pytest.raises(ModelError, match=r"(cannot be read|is damaged).*convert") as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "has no config.json"),
        ("{", "is not JSON"),  # the one reader of JSON says so
        ("[" * 100_000, "nested too deep"),
        ('{"format": "gla-jax model 1", "family": "dino", "spec": []}', "does not describe a model"),
        ('{"format": "gla-jax model 1", "family": [], "spec": {}}', "does not describe a model"),
        ('{"format": "gla-jax model 1", "family": "clip", "spec": {"image": 1}}', "does not describe a model"),
        ('{"model_type": "clip"}', "gla-jax convert"),
        ('{"format": "gla-jax model 1", "family": "sam", "spec": {}}', "does not describe a model"),
        ('{"format": "gla-jax model 1", "family": "dino", "spec": {"width": 3}}', "does not describe a model"),
    ],
)
def test_another_folder_is_one_sentence(tmp_path, config, reason):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=reason):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("odd", ["pipe", "loop"])
def test_what_is_no_file_among_the_parameters_is_not_waited_for(folder, odd):
    """Orbax waited for a pipe as long as the process lived."""
    path = largest_file(folder)
    path.unlink()
    if odd == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path)
    with pytest.raises(ModelError, match=f"params cannot be read \\(it holds {path.name}, which is no file\\)"):
        read_checkpoint(folder)


def test_an_array_larger_than_its_files_is_not_allocated(folder):
    """A shape of terabytes costs no byte in a file: places that were never written read as zeros."""
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder / 'params'}/"}, "path": "vast/"}
    tensorstore.open(
        {"driver": "zarr", "kvstore": store, "metadata": {"shape": [1 << 40], "chunks": [1 << 10], "dtype": "<f4"}},
        create=True,
    ).result()
    with pytest.raises(ModelError, match=r"describes 4398\d+ bytes, more than its files hold"):
        read_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    """Earlier versions converted them: every pixel got the last class."""
    params = random_params(SPEC, 0)
    params["norm"]["bias"][1] = value
    write_checkpoint(tmp_path / "model", SPEC, params, {"source": "random"})
    with pytest.raises(ModelError, match="holds NaN or infinity in norm/bias"):
        read_checkpoint(tmp_path / "model")
