import hashlib
import json
import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from gla_jax.convert import sources
from gla_jax.convert.sources import open_source
from gla_jax.support.errors import ConversionError

X, Y = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float16)


def write_shards(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    save_file({"x": X}, folder / "model-00001-of-00002.safetensors")
    save_file({"y": Y}, folder / "model-00002-of-00002.safetensors")
    names = {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": names if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def refused(source, **options) -> str:
    with pytest.raises(ConversionError) as caught:
        open_source(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_of_shards(tmp_path):
    source = open_source(write_shards(tmp_path))
    assert set(source.state) == {"x", "y"}
    np.testing.assert_array_equal(source.state["x"], X)
    np.testing.assert_array_equal(source.state["y"], Y)
    assert len(source.files) == 3


def test_weights_and_configuration_belong_together(tmp_path):
    save_file({"open_clip": X}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "open_clip_config.json").write_text('{"vision_cfg": {}}')
    (tmp_path / "vocab.json").write_text("{}")
    source = open_source(tmp_path)
    assert list(source.state) == ["open_clip"]
    assert source.config == {"vision_cfg": {}}
    save_file({"transformers": X}, tmp_path / "model.safetensors")
    source = open_source(tmp_path)
    assert list(source.state) == ["transformers"]
    assert source.config == {"model_type": "clip"}
    assert source.tokenizer == ("vocab.json",)
    assert open_source(tmp_path / "open_clip_model.safetensors").config == {"vision_cfg": {}}


PREPROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]}
PREPROCESS = {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}


@pytest.mark.parametrize("weights", ["model.safetensors", "open_clip_model.safetensors"])
@pytest.mark.parametrize(
    ("files", "pixels"),
    [
        ({}, None),
        ({"preprocessor_config.json": PREPROCESSOR}, ((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))),
        ({"processor_config.json": {"image_processor": PREPROCESSOR}}, ((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))),
        (
            {"preprocessor_config.json": PREPROCESSOR, "open_clip_config.json": {"preprocess_cfg": PREPROCESS}},
            ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2)),
        ),
        (
            {"preprocessor_config.json": PREPROCESSOR, "open_clip_config.json": {"model_cfg": {}}},
            ((0.5, 0.5, 0.5), (0.5, 0.25, 0.5)),
        ),
    ],
    ids=["nothing", "preprocessor", "processor", "the training's own file first", "where it says something"],
)
def test_pixels_are_normalised_as_the_files_beside_say(weights, files, pixels, tmp_path):
    """LAION's L/14 was trained with mean and deviation 0.5: OpenAI's would show it every image in wrong colours."""
    save_file({"x": X}, tmp_path / weights)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    source = open_source(tmp_path)
    assert source.pixels == pixels
    if pixels is not None:
        assert {"preprocessor_config.json", "processor_config.json", "open_clip_config.json"} & {*source.files}


def test_a_file_of_its_own_name_stands_alone(tmp_path):
    save_file({"x": X}, tmp_path / "mine.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for source in (open_source(tmp_path / "mine.safetensors"), open_source(tmp_path)):
        assert (source.config, source.files, source.tokenizer) == (None, ("mine.safetensors",), ())


def test_every_file_used_is_hashed(tmp_path):
    save_file({"x": X}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "unused.txt").write_text("")
    digests = open_source(tmp_path).digests()
    assert digests.keys() == {"model.safetensors", "config.json"}
    assert digests["model.safetensors"] == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"x": "../elsewhere.safetensors"}, "does not name the shards beside it"),
        ({"x": "/etc/passwd"}, "does not name the shards beside it"),
        ({}, "does not name the shards beside it"),
        ({"x": 3}, "does not name the shards beside it"),
        ({"x": "model-00003-of-00002.safetensors"}, "names model-00003-of-00002.safetensors, which is not beside it"),
    ],
)
def test_an_index_is_not_trusted(weight_map, reason, tmp_path):
    assert reason in refused(write_shards(tmp_path, weight_map))


def test_shards_that_repeat_a_tensor(tmp_path):
    write_shards(tmp_path)
    save_file({"x": X, "y": Y}, tmp_path / "model-00002-of-00002.safetensors")
    assert "repeats x of another shard" in refused(tmp_path)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "holds no weights the converter reads"),
        ({"flax_model.msgpack": b"x"}, "holds no weights the converter reads"),
        ({"a.pth": b"x", "b.pth": b"x"}, "holds several weight files (a.pth, b.pth); name the one to convert"),
        ({"model.safetensors": b"\x08"}, "is not a complete safetensors file"),
        ({"pytorch_model.bin": b"PK\x03\x04"}, "incomplete zip file"),
        ({"model.safetensors": None, "config.json": b"{"}, "config.json is not JSON"),
        ({"model.safetensors": None, "config.json": b"[]"}, "config.json is not a JSON object"),
    ],
)
def test_folders_without_usable_weights_are_named(files, reason, tmp_path):
    for name, content in files.items():
        if content is None:
            save_file({"x": X}, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
    message = refused(tmp_path)
    assert reason in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("name", ["no/such/path", "weights.pt", "owner/weights.pt", "../owner/name", ""])
def test_what_is_no_source_is_said(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name:
        assert f"{name} is neither a file nor a folder here" in refused(name)
    else:
        assert "holds no weights" in refused(name)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "n" * 300, "owner/" + "n" * 300])
def test_names_no_file_can_have_are_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"{name} cannot be " in refused(name) or f"{name} is neither" in refused(name)


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_manual_way_is_named(offline):
    message = refused("owner/not-downloaded", offline=offline)  # the suite runs with HF_HUB_OFFLINE=1
    assert message.startswith("owner/not-downloaded is neither a file nor a folder here")  # as a mistyped path is
    assert "from the hub it cannot be downloaded (this run is offline)" in message
    assert "hf download owner/not-downloaded --local-dir FOLDER" in message


def safetensors(folder: Path, header: dict | bytes, content: bytes = b"", length: int | None = None) -> Path:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + content)
    return path


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2, 2), end: int = 16) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    ("header", "length", "reason"),
    [
        ({}, 100 << 30, "header too large"),
        ({}, (1 << 64) - 1, "header too large"),
        ({"x": entry(), "y": entry()}, None, "not a complete safetensors file"),
        ({"x": entry(shape=(1 << 40, 1 << 40))}, None, "not a complete safetensors file"),
        ({"x": entry(shape=(-2, -2))}, None, "not a complete safetensors file"),
        ({"y": entry(shape=(0, 1 << 62), end=0), "x": entry()}, None, "gives y the shape [0, "),
        (b'{"x":' * 100_000 + b"1" + b"}" * 100_000, None, "recursion limit"),
        *(
            ({"x": entry(dtype, end=end)}, None, f"as {dtype}, which")
            for dtype, end in (("F8_E4M3", 4), ("F8_E5M2", 4))
        ),
        ({"x": entry("C64", end=32)}, None, "stores x as C64, which is not converted"),
        ({"x": entry("F2_E9M9", end=4)}, None, "unknown variant `F2_E9M9`"),
    ],
    ids=str,
)
def test_safetensors_of_absurd_headers(header, length, reason, tmp_path):
    ends = [x["data_offsets"][1] for x in header.values()] if isinstance(header, dict) else []
    assert reason in refused(safetensors(tmp_path, header, bytes(max(ends, default=0)), length))


def test_safetensors_that_name_a_tensor_twice(tmp_path):
    """Readers take the last of the two without a word: here it would have another dtype, of the same bytes."""
    for second in (entry(), entry("I32"), entry(shape=(4, 1))):
        header = f'{{"x": {json.dumps(entry())}, "x": {json.dumps(second)}}}'.encode()
        message = refused(safetensors(tmp_path, header, bytes(16)))
        assert "model.safetensors cannot be used: it names 'x' twice; download it again" in message


@pytest.mark.parametrize("name", sources.TOKENIZERS)
def test_files_of_a_tokenizer_are_bounded(name, tmp_path):
    save_file({"x": X}, tmp_path / "model.safetensors")
    with (tmp_path / name).open("wb") as file:
        limit = sources.MAX_TOKENIZER_BYTES >> 20 if name == "tokenizer.json" else 8
        file.truncate((limit << 20) + 1)
    assert f"{name} is larger than any tokenizer's ({limit} MiB)" in refused(tmp_path)
    os.truncate(tmp_path / name, limit << 20)
    assert open_source(tmp_path).tokenizer == (name,)


def test_safetensors_of_every_dtype(tmp_path):
    state = {
        f"x{i}": np.arange(6).astype(t).reshape(2, 3)
        for i, t in enumerate(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
    }
    state["bfloat16"], state["scalar"] = np.ones(3, ml_dtypes.bfloat16), np.array(3, np.float32)
    save_file(state, tmp_path / "model.safetensors")
    read = open_source(tmp_path).state
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor)


def test_pipes_devices_and_loops_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    assert "holds no weights" in refused(tmp_path)
    for path in (tmp_path / "model.safetensors", "/dev/zero"):
        assert f"{path} is a device or a pipe, not a file" in refused(path)
    (tmp_path / "a.pt").symlink_to(tmp_path / "b.pt")
    (tmp_path / "b.pt").symlink_to(tmp_path / "a.pt")
    assert "neither a file nor a folder here" in refused(tmp_path / "a.pt")
    (tmp_path / "model.safetensors").unlink()
    save_file({"x": X}, tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "tokenizer.json")
    os.mkfifo(tmp_path / "config.json")
    source = open_source(tmp_path)
    assert (source.config, source.tokenizer, [*source.digests()]) == (None, (), ["model.safetensors"])


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
def test_json_of_a_hundred_thousand_levels(name, tmp_path):
    if "index" not in name:
        save_file({"x": X}, tmp_path / "model.safetensors")
    (tmp_path / name).write_text("[" * 100_000 + "]" * 100_000)
    assert "nested too deep" in refused(tmp_path)


def test_the_weights_go_with_the_configuration(tmp_path):
    """The hub's repositories of timm hold the image tower alone beside the whole CLIP of open_clip."""
    save_file({"timm": X}, tmp_path / "model.safetensors")
    save_file({"open_clip": X}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {}}}')
    assert list(open_source(tmp_path).state) == ["open_clip"]
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')
    source = open_source(tmp_path)
    assert list(source.state) == ["open_clip"]
    assert source.config == {"model_cfg": {"vision_cfg": {}}}
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert list(open_source(tmp_path).state) == ["timm"]  # which transformers wrote, as its config.json says


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one model: a folder named after its commit."""
    folder = tmp_path / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    asked = []

    class Api:
        def list_repo_files(self, repo_id):
            return [".gitattributes", "README.md", "onnx/model.bin", *(path.name for path in folder.iterdir())]

    def snapshot_download(repo_id, *, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("gla_jax.convert.sources.unreachable", lambda: None)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return folder, asked


def test_a_download_takes_one_kind_of_weights(hub):
    folder, asked = hub
    save_file({"x": X}, folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"another gigabyte")
    for name in ("tokenizer.json", "tokenizer.model"):  # the latter says the same
        (folder / name).write_text("{}")
    source = open_source("owner/name")
    assert source.revision == "0123abc"
    beside = {*sources.CONFIGS, *sources.PREPROCESSORS, "tokenizer.json"}
    assert asked == [("owner/name", ["model.safetensors", *asked[0][1][1:]])]
    assert sorted(asked[0][1][1:]) == sorted(beside)
    assert {"preprocessor_config.json", "open_clip_config.json"} <= beside
    np.testing.assert_array_equal(source.state["x"], X)


def test_bytes_of_a_download_are_those_that_the_hub_states(hub, tmp_path):
    """huggingface_hub names a large file in its cache after the SHA-256 that the hub states of it."""
    folder, _ = hub
    save_file({"x": X}, tmp_path / "weights")
    digest = sources.sha256_of(tmp_path / "weights")
    (tmp_path / "weights").rename(tmp_path / digest)
    (folder / "model.safetensors").symlink_to(tmp_path / digest)
    assert open_source("owner/name").stated == {"model.safetensors": digest}
    assert open_source(folder).stated == {}  # of a folder that was copied by hand nobody states anything
    save_file({"x": X + 1}, tmp_path / digest)
    message = refused("owner/name")
    assert (
        f"model.safetensors is not the file whose SHA-256 the hub states ({digest}); remove {tmp_path / digest}"
        in message
    )


def test_a_download_of_shards(hub):
    folder, asked = hub
    assert set(open_source("owner/name" if write_shards(folder) else "").state) == {"x", "y"}
    [(_, patterns)] = asked
    assert patterns[0] == "model.safetensors.index.json"
    assert "model-*.safetensors" in patterns


def test_a_network_that_fails_is_quoted(hub, monkeypatch):
    def list_repo_files(self, repo_id):
        raise ConnectionError("Name or service not known.\nmore")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", list_repo_files)
    message = refused("owner/name")
    assert "(Name or service not known)" in message
    assert "hf download owner/name --local-dir FOLDER" in message


def test_a_hub_model_without_weights(hub):
    assert "owner/name holds no weights" in refused("owner/name")


def test_files_larger_than_any_model_has_are_not_read(tmp_path):
    """A list of empty lists takes thirty times its size in memory."""
    write_shards(tmp_path)
    (tmp_path / "config.json").write_bytes(b"[" + b"[]," * (3 << 20) + b"[]]")
    assert "config.json is larger than 8 MiB" in refused(tmp_path)
    (tmp_path / "config.json").unlink()
    path = tmp_path / "model-00001-of-00002.safetensors"
    header = json.dumps({"__metadata__": {str(i): "" for i in range(1 << 20)}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    path.write_bytes(path.read_bytes() + b" ")
    assert "header larger than any model's (8 MiB)" in refused(tmp_path)
