"""Names and folders to loaded weights, with a hub that is a folder of random transformers models."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import jax
import numpy as np
import pytest
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

import gla_jax.convert
from gla_jax.checkpoints import model_folder as checkpoint
from gla_jax.checkpoints.model_folder import ClipSpec, abstract_params, flatten_params, write_checkpoint
from gla_jax.convert import sources
from gla_jax.models.pretrained import origins, resolve
from gla_jax.models.registry import NamedModel
from gla_jax.support.errors import ConversionError, ModelError
from gla_jax.towers.clip import ClipImageSpec, ClipTextSpec
from gla_jax.towers.dino import DinoSpec
from tests.towers.random_models import clip_config, dino_config, randomise, sizes

NAMED = {
    "some-clip": NamedModel("clip", "somebody/some-clip", "MIT", 8, 32, 1),
    "some-dino": NamedModel("dino", "somebody/some-dino", "MIT", 8, 32, 1),
}
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<start>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<end>", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "<start>": {"id": "<start>", "ids": [98], "tokens": ["<start>"]},
            "<end>": {"id": "<end>", "ids": [99], "tokens": ["<end>"]},
        },
    },
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "cat": 1, "<start>": 98, "<end>": 99}, "unk_token": "<unk>"},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """somebody/some-clip and somebody/some-dino as transformers saves them."""
    folder = tmp_path_factory.mktemp("hub")
    image, text = sizes(32, 2, 2, image_size=32, patch_size=8), sizes(32, 2, 2, vocab_size=100)
    clip = transformers.CLIPModel(clip_config(image, text, 16, "gelu"))
    dino = transformers.ViTModel(dino_config(32, 2, 2, patch=8, side=32))
    for name, model in (("some-clip", clip), ("some-dino", dino)):
        randomise(model, 0).save_pretrained(folder / "somebody" / name)
    (folder / "somebody" / "some-clip" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder


@pytest.fixture
def downloads(hub, monkeypatch):
    """The hub ids asked for with a network allowed; named models are the two of the fake hub."""
    asked = []

    def download(hub_id, *, offline=False, reachable=False):
        if not offline:
            asked.append(hub_id)
        return hub / hub_id

    monkeypatch.setattr(sources, "download", download)
    monkeypatch.setattr("gla_jax.convert.sources.unreachable", lambda: None)
    monkeypatch.setattr("gla_jax.models.pretrained.MODELS", NAMED)
    return asked


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model folders: clip, dino, and pair with one of each."""
    root = tmp_path_factory.mktemp("folders")
    clip = ClipSpec(ClipImageSpec(32, 8, 16, 1, 2, 32, 8), ClipTextSpec(100, 7, 16, 1, 2, 32, 8, 99))
    dino = DinoSpec(32, 8, 16, 1, 2, 32)
    for name, spec in (("clip", clip), ("dino", dino)):
        params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), abstract_params(spec))
        write_checkpoint(root / name, spec, params, {"source": "ones"})
    (root / "pair").mkdir()
    shutil.copytree(root / "clip", root / "pair" / "clip")
    shutil.copytree(root / "dino", root / "pair" / "vfm")
    return root


def test_named_models_are_downloaded_and_converted_once(downloads, hub, tmp_path):
    clip, vfm, _ = resolve("some-clip+some-dino", cache_dir=tmp_path)
    assert (clip.family, vfm.family) == ("clip", "dino")
    assert clip.folder == tmp_path / "models" / "some-clip"
    assert downloads == ["somebody/some-clip", "somebody/some-dino"]
    again, *_ = resolve("some-clip+some-dino", cache_dir=tmp_path, offline=True)
    assert again.sha256 == clip.sha256
    assert downloads == ["somebody/some-clip", "somebody/some-dino"]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["some-clip", "some-dino"]


def test_the_cache_is_where_the_environment_says(downloads, monkeypatch, tmp_path):
    monkeypatch.setenv("GLA_JAX_CACHE", str(tmp_path / "mine"))
    assert resolve("some-dino")[0] is None  # a foundation model alone, which knows classes by example
    assert (tmp_path / "mine" / "models" / "some-dino" / "config.json").exists()


def test_a_name_goes_before_a_folder_of_that_name(downloads, folders, monkeypatch, tmp_path):
    shutil.copytree(folders / "clip", tmp_path / "some-clip")
    monkeypatch.chdir(tmp_path)
    named, folder = (resolve(name, cache_dir=tmp_path / "cache")[0] for name in ("some-clip", "./some-clip"))
    assert named.folder == tmp_path / "cache" / "models" / "some-clip"
    assert folder.folder == tmp_path / "some-clip"


@pytest.mark.parametrize(("module", "stage"), [(gla_jax.convert, "convert"), (checkpoint, "save_params")])
def test_another_process_may_be_faster(module, stage, downloads, monkeypatch, tmp_path):
    """Before this one converts, or while it writes."""
    work, others = getattr(module, stage), []

    def after_another(*args, **options):
        if not others:
            others.append("running")
            others.append(resolve("some-clip", cache_dir=tmp_path)[0])
        return work(*args, **options)

    monkeypatch.setattr(module, stage, after_another)
    assert resolve("some-clip", cache_dir=tmp_path)[0].sha256 == others[1].sha256
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["some-clip"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ConversionError("The weights are of no known architecture."), ConversionError),
        (OSError(errno.ENOSPC, "No space left on device"), ModelError),
    ],
)
def test_a_failed_conversion_leaves_nothing(error, raised, downloads, monkeypatch, tmp_path):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(checkpoint, "save_params", fail)
    with pytest.raises(raised, match=r"no known architecture|some-clip cannot be made \(No space left"):
        resolve("some-clip", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_download_left_is_removed_by_the_next(downloads, tmp_path):
    """A gigabyte of weights would stay in a hidden folder of the cache for good."""
    left = tmp_path / "models" / ".some-clip-0123abcd.unfinished"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    resolve("some-clip", cache_dir=tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["some-clip"]


def test_a_damaged_cache_is_named(downloads, tmp_path):
    resolve("some-clip", cache_dir=tmp_path)
    shutil.rmtree(tmp_path / "models" / "some-clip" / "params")
    with pytest.raises(ModelError, match=r"remove .*some-clip and run again"):
        resolve("some-clip", cache_dir=tmp_path)


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_the_manual_way_is_named(offline, monkeypatch, tmp_path):
    # The suite sets HF_HUB_OFFLINE, so both go through huggingface_hub's own refusal.
    monkeypatch.setattr("gla_jax.models.pretrained.MODELS", NAMED)
    with pytest.raises(ModelError) as caught:
        resolve("some-clip", offline=offline, cache_dir=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert "somebody/some-clip" in message
    assert "cannot be downloaded (this run is offline): copy" in message
    assert "gla-jax convert clip FOLDER OUT" in message
    assert "write OUT in place of some-clip in --model." in message
    assert list(tmp_path.iterdir()) == []


class Hub:
    """Stands for the HTTP client of huggingface_hub: counts what it is asked, and answers or does not."""

    def __init__(self, monkeypatch, error=None):
        self.asked, self.error = [], error
        monkeypatch.setattr("gla_jax.models.pretrained.MODELS", NAMED)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: self)

    def head(self, url, timeout):
        self.asked.append((url, timeout))
        if self.error:
            raise self.error


def test_a_missing_network_is_told_at_once(monkeypatch, tmp_path, capsys):
    """huggingface_hub would try for half a minute and say so in eleven lines."""
    hub = Hub(monkeypatch, OSError("Name or service not known\nat some length"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match=r"cannot be downloaded \(Name or service not known\): copy the files"):
        resolve("some-clip", cache_dir=tmp_path / "ours")
    assert len(hub.asked) == 1
    assert hub.asked[0][1] <= 5
    assert capsys.readouterr() == ("", "")


def test_a_hub_that_answers_is_asked_once(hub, monkeypatch, tmp_path):
    """Every question may take the five seconds that a slow network is given."""
    asked = Hub(monkeypatch).asked
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, hub_id: ["model.safetensors"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub_id, **options: str(hub / hub_id))
    resolve("some-clip", cache_dir=tmp_path)
    assert len(asked) == 1


def test_a_failed_download_names_its_reason_in_whole_words(monkeypatch, tmp_path):
    def download(hub_id, *, offline=False, reachable=False):
        assert not offline
        raise ConversionError("cannot be downloaded") from OSError("Repository not found. " + "Sentence " * 40)

    Hub(monkeypatch)
    monkeypatch.setattr(sources, "download", download)
    with pytest.raises(ModelError, match=r"\(Repository not found\. (Sentence )+\.\.\.\): copy the files"):
        resolve("some-clip", cache_dir=tmp_path)


@pytest.mark.parametrize("status", [401, 403])
def test_weights_that_their_owner_hands_out_by_hand(status, monkeypatch, tmp_path):
    def download(hub_id, *, offline=False, reachable=False):
        answer = SimpleNamespace(status_code=status, headers={}, request=None)
        raise ConversionError("cannot be downloaded") from HfHubHTTPError("Access is restricted", response=answer)

    Hub(monkeypatch)
    monkeypatch.setattr(sources, "download", download)
    monkeypatch.setitem(NAMED, "some-dino", replace(NAMED["some-dino"], gated=True))
    match = r"some-dino is gated .* licence on https://huggingface\.co/somebody/some-dino, log in with `hf auth login`"
    with pytest.raises(ModelError, match=match):
        resolve("some-dino", cache_dir=tmp_path)
    with pytest.raises(ModelError, match=r"\(Access is restricted\): copy the files"):
        resolve("some-clip", cache_dir=tmp_path)


def test_without_a_network_what_the_hub_keeps_here_is_used(downloads, monkeypatch, tmp_path):
    monkeypatch.setattr("gla_jax.convert.sources.unreachable", lambda: "Network is unreachable")
    clip, none, _ = resolve("some-clip", cache_dir=tmp_path)
    assert (clip.family, none) == ("clip", None)
    assert downloads == []


def test_folders(folders):
    clip, none, _ = resolve(folders / "clip")
    assert (clip.family, none) == ("clip", None)
    for name in (f"{folders}/clip+{folders}/dino", f"{folders}/dino+{folders}/clip", folders / "pair"):
        clip, vfm, _ = resolve(name)
        assert (clip.family, vfm.family) == ("clip", "dino")
    for leaf in flatten_params(vfm.params).values():
        assert leaf.dtype == np.float32


def test_a_folder_may_have_a_plus_in_its_name(folders, tmp_path):
    shutil.copytree(folders / "clip", tmp_path / "mine+yours")
    assert resolve(tmp_path / "mine+yours")[0].folder == tmp_path / "mine+yours"


def test_the_embedded_pair_lies_in_the_package(folders, monkeypatch, tmp_path):
    shutil.copytree(folders / "pair", tmp_path / "weights")
    monkeypatch.setattr("gla_jax.models.pretrained.files", lambda package: {"gla_jax.tiny_world": tmp_path}[package])
    clip, vfm, _ = resolve("tiny-world")
    assert (clip.folder, vfm.folder) == (tmp_path / "weights" / "clip", tmp_path / "weights" / "vfm")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("{folders}/clip+{folders}/clip", "names 2 CLIP and 0 features models"),
        ("{folders}/dino+{folders}/dino", "names 0 CLIP and 2 features models"),
        ("{folders}/clip+{folders}/pair", "names 2 CLIP and 1 features models"),
        ("/dev/zero", "/dev/zero is a pipe, a socket or a device; name a model folder"),
        ("clip-vit-base-patch17", "did you mean clip-vit-base-patch16"),
        ("clip-vit-base-patch16+dinov2_smal", "did you mean dinov2-small"),
        ("openai/clip-vit-base-patch16", "did you mean clip-vit-base-patch16"),
        ("xyzzy", "gla-jax models lists the names"),
        ("", "'' names no model; give a folder, or one or two of tiny-world"),
        ("{folders}/clip+", "'' is neither a model folder nor a named model"),
        ("{folders}/" + "x" * 300, "is neither a model folder nor a named model"),
        ("{folders}/pari", "/pari' is neither a model folder nor a named model; did you mean {folders}/pair?"),
        ("{folders}/pytorc", "; gla-jax models lists the names"),  # a folder that is no model is no advice
        ("{folders}/clip+{folders}/dinno", "did you mean {folders}/dino?"),
        ("{folders}", "holds neither config.json nor the folders clip and vfm"),
        ("{hub}/somebody/some-clip", "gla-jax convert"),
        ("{hub}/somebody/some-dino/model.safetensors", "convert it first: gla-jax convert"),
        ("{folders}/pytorch", "holds weights as they are published; convert them first"),
    ],
)
def test_what_cannot_be_a_model_is_told_in_one_sentence(name, sentence, folders, hub, monkeypatch):
    (folders / "pytorch").mkdir(exist_ok=True)
    (folders / "pytorch" / "dino_vitbase8_pretrain.pth").touch()
    # The left half of a pair is never downloaded here: the right half is refused after it.
    monkeypatch.setattr("gla_jax.models.pretrained._read_cached", lambda *_: resolve(folders / "clip")[0])
    with pytest.raises(ModelError) as caught:
        resolve(name.format(folders=folders, hub=hub))
    message = str(caught.value)
    assert sentence.format(folders=folders) in message
    assert "\n" not in message


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="no /proc here")
def test_a_cache_that_cannot_be_written_is_named_before_the_download(downloads, monkeypatch):
    monkeypatch.setenv("GLA_JAX_CACHE", "/proc/nohome")
    with pytest.raises(ModelError, match=r"/proc/nohome/models/some-clip cannot be made.*; set GLA_JAX_CACHE to"):
        resolve("some-clip")
    assert downloads == []


def test_a_wrong_part_is_told_before_another_is_downloaded(downloads, tmp_path):
    with pytest.raises(ModelError, match="'some-dyno' is neither"):
        resolve("some-clip+some-dyno", cache_dir=tmp_path)
    assert downloads == []


def test_origins_say_whose_weights_they_are(tmp_path, monkeypatch):
    """What a page about figures needs: every file of weights, and who states its hash."""
    folder = Path(__file__).parents[1] / "peers/data/timm_dino"
    manifest = gla_jax.convert.convert("dino", folder, tmp_path / "dino")
    digest = manifest["files"]["model.safetensors"]
    row = {"source": str(folder), "revision": "", "file": "model.safetensors", "sha256": digest, "stated_by": ""}
    assert origins(str(tmp_path / "dino")) == [row]
    monkeypatch.setattr("gla_jax.models.pretrained.PUBLISHED", {digest: "the test"})
    assert origins(str(tmp_path / "dino")) == [row | {"stated_by": "the test"}]
    monkeypatch.undo()
    path = tmp_path / "dino/manifest.json"
    path.write_text(json.dumps(manifest | {"revision": "0123abc", "stated_by_hub": {"model.safetensors": digest}}))
    assert origins(str(tmp_path / "dino")) == [row | {"stated_by": "the hub", "revision": "0123abc"}]
    assert [row["source"] for row in origins("tiny-world")] == 2 * ["trained on generated scenes"]
