"""What lies on an object store must be as safe as what lies on a disk: whole, locked, and fetched once."""

import errno
import threading
import time
from pathlib import Path

import pytest

from gla_jax.checkpoints.model_folder import read_checkpoint
from gla_jax.cli import main
from gla_jax.support import places
from gla_jax.support.errors import UserError
from gla_jax.support.files import cache_folder, folder_lock, read_json, write_json
from tests.eval import trees


@pytest.fixture
def folder(request):
    root = places.place(f"memory://{request.node.name.replace('[', '-').replace(']', '')}")
    yield root
    root.fs.store.clear()


def test_local_paths_stay_what_they_are(tmp_path):
    assert places.place(str(tmp_path)) == tmp_path
    assert places.place(tmp_path) is tmp_path
    assert not places.is_remote(places.place("relative/path"))
    assert not places.is_url("C:/x")
    assert places.is_remote(places.place("memory://x"))


def test_what_is_no_store_is_refused():
    for address in ("nowhere://bucket/x", "ftp://host/x", "sftp://host/x", "github://x"):
        with pytest.raises(UserError, match=f"^{address} names no store that is known; use s3://"):
            places.place(address)


def test_a_scheme_in_capitals_is_no_folder_of_that_name():
    assert places.is_remote(places.place("MEMORY://x"))
    assert places.is_remote(places.place("HTTPS://example.org/x.png"))


def test_files_are_written_and_read(folder):
    write_json(folder / "a/b.json", {"x": 1})
    assert read_json(folder / "a/b.json", "the test", "write it") == {"x": 1}
    assert [str(path) for path in places.objects_below(folder)] == [str(folder / "a/b.json")]
    with pytest.raises(UserError, match="cannot be read"):
        read_json(folder / "none.json", "the test", "write it")


def test_one_of_many_holds_the_lock(folder):
    """And when it is let go of another may take it."""
    taken, together = [], threading.Barrier(6)

    def take():
        together.wait()
        try:
            with folder_lock(folder, "taken"):
                taken.append(1)
                time.sleep(0.3)
        except UserError as error:
            assert str(error) == "taken"  # noqa: PT017

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    with folder_lock(folder, "taken"), pytest.raises(UserError, match="taken"), folder_lock(folder, "taken"):
        pass
    assert not list(places.objects_below(folder))


def test_a_dead_owner_s_lock_is_taken_over_and_a_living_one_s_is_not(folder, monkeypatch):
    monkeypatch.setattr(places, "SECONDS_OF_A_LOCK", 0.4)
    (folder / ".gla-jax.lock.0").write_bytes(places._sign("dead"))
    with pytest.raises(UserError, match="taken"), folder_lock(folder, "taken"):
        pass
    with folder_lock(folder, "taken", wait=5):  # after the minute without a sign
        time.sleep(1)  # signs of life go on
        with pytest.raises(UserError, match="taken"), folder_lock(folder, "taken"):
            pass


def test_a_lock_that_cannot_be_renewed_is_a_warning(folder, monkeypatch):
    """Another run takes it over after a minute, and both would write."""

    def gone(*words, **more):
        raise OSError("the store is gone")

    monkeypatch.setattr(places, "SECONDS_OF_A_LOCK", 0.2)
    with folder_lock(folder, "taken"):
        monkeypatch.setattr(places, "upload", gone)
        with pytest.warns(
            UserWarning, match=r"cannot be kept locked \(the store is gone\): another run may write there"
        ):
            time.sleep(0.6)


def test_a_folder_is_fetched_once_for_each_content(folder, tmp_path):
    for name, content in (("config.json", b"{}"), ("params/d/x", b"1")):
        (folder / name).write_bytes(content)
    first = places.local_copy(folder, lambda: tmp_path)
    assert (first / "params/d/x").read_bytes() == b"1"
    assert places.local_copy(folder, lambda: tmp_path) == first
    (folder / "params/d/x").write_bytes(b"22")
    second = places.local_copy(folder, lambda: tmp_path)
    assert (second / "params/d/x").read_bytes() == b"22"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first.name, second.name])
    assert places.local_copy(tmp_path, lambda: cache_folder("none")) is tmp_path
    with pytest.raises(UserError, match="does not exist or holds nothing"):
        places.local_copy(folder / "none", lambda: tmp_path)


def test_a_copy_that_cannot_be_put_in_place_is_an_error(folder, tmp_path, monkeypatch):
    """A folder that is not there would be called no model, whatever the disk said."""

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    (folder / "config.json").write_bytes(b"{}")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        places.local_copy(folder, lambda: tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_of_other_commands_go_to_stores(folder, capsys):
    words = ["explain", "examples/none.png", "--at", "1,1", "--out", str(folder / "x.png")]
    assert main(words) == 2  # the image is missing, the store is not refused
    assert "none.png does not exist" in capsys.readouterr().err
    words = ["crossing", "tiny-world", "--limit", "1", "--out", str(folder / "crossing.json")]
    assert main(words) == 0
    assert "stages" in read_json(folder / "crossing.json", "the figures", "measure them")


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def put(home, folder):
    places.put_files(home, folder)
    return folder


def test_weights_are_converted_from_and_to_a_store(folder, tmp_path, monkeypatch, capsys):
    """As on a disk: the same parameters, whole or not there, never over another model."""
    source = Path(__file__).parents[1] / "peers/data/timm_dino"
    url = put(source, folder / "weights")
    for where in (url, url / "model.safetensors"):
        out = folder / f"model-{where.name}"
        there = source if where == url else source / where.name
        assert main(["convert", "dino", str(there), str(tmp_path / where.name)]) == 0
        assert main(["convert", "dino", str(where), str(out)]) == 0
        local, fetched = tmp_path / where.name, places.local_copy(out, lambda: tmp_path / "cache")
        assert (fetched / "config.json").read_bytes() == (local / "config.json").read_bytes()
        assert read_checkpoint(fetched).sha256 == read_checkpoint(local).sha256
        manifests = [read_json(model / "manifest.json", "x", "y") for model in (fetched, local)]
        assert [manifest.pop("source") for manifest in manifests] == [str(where), str(there)]
        assert manifests[0] == manifests[1]
        assert main(["convert", "dino", str(where), str(out)]) == 2
        assert f"{out} exists already" in capsys.readouterr().err

    def fails(self, local, remote, **more):
        assert not remote.endswith("config.json"), "the file without which there is no model goes last"
        if "manifest" in remote:
            raise OSError("the store is gone")
        put_file(self, local, remote, **more)

    put_file = type(folder.fs).put_file
    monkeypatch.setattr(type(folder.fs), "put_file", fails)
    assert main(["convert", "dino", str(url), str(folder / "broken")]) == 2
    assert "cannot be made (the store is gone)" in capsys.readouterr().err
    assert not list(places.objects_below(folder / "broken"))


def test_a_copy_is_prepared_from_and_to_a_store(folder, tmp_path):
    from gla_jax.eval.datasets.tfds_copy import prepare

    data = trees.camvid(tmp_path / "camvid", [0, 3, 11])
    here = prepare("camvid", data, tmp_path / "copy")
    there = prepare("camvid", put(data, folder / "camvid"), folder / "copy")
    assert names_below(tmp_path / "copy") == [
        str(path)[len(str(folder / "copy")) + 1 :] for path in places.objects_below(folder / "copy")
    ]
    assert str(there) == f"{folder}/copy/{here.relative_to(tmp_path / 'copy')}"
    assert prepare("camvid", data, folder / "copy") == there  # kept
    trees.save_label(data / "labels/x.png", trees.label_of([5]))
    with pytest.raises(UserError, match="is a copy of other data"):
        prepare("camvid", data, folder / "copy")


def test_a_private_copy_lasts_as_long_as_the_block(folder, tmp_path):
    (folder / "a/b").write_bytes(b"1")
    with places.on_disk(folder / "a") as copy:
        assert (copy / "b").read_bytes() == b"1"
    assert not copy.exists()
    with places.on_disk(tmp_path) as same:
        assert same is tmp_path
    with pytest.raises(UserError, match="does not exist or holds nothing"), places.on_disk(folder / "none"):
        pass
