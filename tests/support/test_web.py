"""An address is read like a file, and can do no more harm than one: bounded, and never led elsewhere."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import gla_jax
from gla_jax.cli import main
from gla_jax.convert import convert
from gla_jax.images.reading import read_image
from gla_jax.results.dataset import FORMATS, Labelled
from gla_jax.support import places, web
from gla_jax.support.errors import ConversionError, ImageError, UserError
from tests.eval import trees
from tests.small_models import random_pair

WEIGHTS = Path(__file__).parents[1] / "peers/data/timm_dino/model.safetensors"
SHA256 = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


@pytest.fixture
def files(tmp_path):
    trees.save_image(tmp_path / "site/photo.png")
    content = {"/photo.png": (tmp_path / "site/photo.png").read_bytes(), "/cut.png": b"\x89PNG"}
    return content | {f"/{digest}/model.safetensors": WEIGHTS.read_bytes() for digest in (SHA256, 64 * "0")}


@pytest.fixture
def site(files, monkeypatch):
    """http://127.0.0.1:PORT, which alone the test allows in place of https."""
    places_to_go = {
        "/file": "file:///etc/passwd",
        "/ftp": "ftp://127.0.0.1/x",
        "/loop": "/loop",
        "/moved": "/photo.png",
    }

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.partition("?")[0]
            if path in places_to_go:
                self.send_response(302)
                self.send_header("Location", places_to_go[path])
                self.end_headers()
                return
            self.send_response(200 if path in files or path == "/endless" else 404)
            if path in files:
                self.send_header("ETag", hashlib.sha256(files[path]).hexdigest())
                self.send_header("Content-Length", str(len(files[path])))
            self.end_headers()
            if self.command == "HEAD":
                return
            try:
                self.wfile.write(files.get(path, b""))
                while path == "/endless":
                    self.wfile.write(bytes(2**20))
            except OSError:  # the reader has seen enough
                pass

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(web, "SCHEMES", ("http",))
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_photo_at_an_address_is_the_photo(site, tmp_path):
    photo = read_image(tmp_path / "site/photo.png")
    for name in ("photo.png", "photo.png?size=large", "moved"):
        assert np.array_equal(read_image(f"{site}/{name}"), photo)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nothing.png", "cannot be read (the server says 404 Not Found)"),
        ("/endless", "cannot be read (it has more than 4 MiB)"),
        (
            "/file",
            "cannot be read (the server says 302 Found - Redirection to url 'file:///etc/passwd' is not allowed)",
        ),
        ("/ftp", "cannot be read (ftp:// is not read; give an address with http://)"),
        ("/loop", "cannot be read (the server says 302"),
        ("/cut.png", "cannot be read as an image"),
    ],
)
def test_what_is_wrong_is_one_sentence(site, monkeypatch, path, reason):
    monkeypatch.setattr(places, "MAX_WEB_BYTES", 2**22)
    with pytest.raises(ImageError) as fault:
        read_image(f"{site}{path}")
    assert str(fault.value).startswith(f"{site}{path}")
    assert reason in str(fault.value)


def test_nothing_but_https_is_asked():
    with pytest.raises(ImageError, match="http:// is not read; give an address with https://"):
        read_image("http://127.0.0.1:9/photo.png")
    with pytest.raises(UserError, match="is a file of this machine; write its path without file://"):
        read_image("file:///etc/hostname")


def test_a_server_that_is_not_there_is_one_sentence(site, monkeypatch):
    with pytest.raises(ImageError, match=r"127\.0\.0\.1:9/x\.png cannot be read \(Connection refused\)"):
        read_image("http://127.0.0.1:9/x.png")


def test_segment_takes_addresses_and_goes_on(site, files, tmp_path, capsys):
    model, sizes = random_pair(tmp_path / "model"), ["--short-side", "32", "--crop", "32", "--stride", "32"]
    words = ["--classes", "sand", "--classes", "water", "--model", str(model), *sizes]
    out, address = tmp_path / "out", f"{site}/photo.png?x=1"
    assert main(["segment", address, *words, "--out", str(out)]) == 0
    assert main(["segment", str(tmp_path / "site/photo.png"), *words, "--out", str(tmp_path / "local")]) == 0
    for name in ("photo.index.png", "photo.overlay.png"):
        assert (out / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    capsys.readouterr()
    assert main(["segment", address, *words, "--out", str(out)]) == 0
    assert "1 of 1 images were done before" in capsys.readouterr().err
    result = gla_jax.segment(address, ["sand", "water"], model=str(model))
    assert result.labels.shape == trees.SIZE
    assert main(["segment", address, *words, "--out", address]) == 2
    sentence = f"an https:// address is read as an image, a raster or weights alone; fetch {address} first."
    assert sentence in capsys.readouterr().err


def test_images_of_a_yolo_data_set_come_from_addresses(site, files, tmp_path):
    """Without a package that opens addresses as files; one that is gone is named, and the labels stay."""
    labels = np.zeros(trees.SIZE, np.uint8)
    FORMATS["yolo"]([Labelled(labels, f"{site}/photo.png", "photo")], ["sand"], None, tmp_path)
    assert (tmp_path / "yolo/images/photo.png").read_bytes() == files["/photo.png"]
    with pytest.warns(UserWarning, match=r"gone\.png cannot be read any more \(the server says 404 "):
        FORMATS["yolo"]([Labelled(labels, f"{site}/gone.png", "gone")], ["sand"], None, tmp_path)
    assert (tmp_path / "yolo/labels/gone.txt").exists()


def test_a_raster_that_is_not_at_its_address_has_the_servers_reason(site, capsys):
    assert main(["raster", f"{site}/gone.tif", "--classes", "sand", "--classes", "sea"]) == 2
    assert f"{site}/gone.tif cannot be read (the server says 404 Not Found)." in capsys.readouterr().err


def test_weights_have_the_hash_of_their_address(site, tmp_path):
    """OpenAI's addresses hold the SHA-256 of the file."""
    manifest = convert("dino", f"{site}/{SHA256}/model.safetensors", tmp_path / "model", num_heads=4)
    assert manifest["files"] == {"model.safetensors": SHA256}
    assert manifest["source"] == f"{site}/{SHA256}/model.safetensors"
    with pytest.raises(ConversionError, match=f"has the SHA-256 {SHA256}, and its address names another"):
        convert("dino", f"{site}/{64 * '0'}/model.safetensors", tmp_path / "other")
    assert not (tmp_path / "other").exists()
