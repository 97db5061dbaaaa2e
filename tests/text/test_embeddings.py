"""Text embeddings: equal to PyTorch's text tower on the same texts, made once, and never from a damaged file."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from gla_jax.checkpoints.model_folder import read_checkpoint
from gla_jax.support.errors import ClassesError, ModelError
from gla_jax.text import embeddings as module
from gla_jax.text.embeddings import encode_texts, load_tokenizer, openai_tokenizer_files, text_embeddings
from gla_jax.text.prompts import parse_classes
from tests.small_models import random_pair

CLASSES = parse_classes(["sand; gravel", "a red cloth with dots"])
TEMPLATES = ("{}", "a photo of a {}.")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return read_checkpoint(random_pair(tmp_path_factory.mktemp("model")) / "clip")


@pytest.fixture(scope="module")
def tokenizer(clip):
    return load_tokenizer(clip.folder)


def test_features_do_not_depend_on_the_texts_beside_them(clip, tokenizer):
    texts = ["sand", "a photo of a large red cloth with dots.", "water"] * 40
    together = encode_texts(clip.params["text"], clip.spec.text, tokenizer, texts)
    alone = encode_texts(clip.params["text"], clip.spec.text, tokenizer, texts[:1])
    np.testing.assert_allclose(together[0], alone[0], atol=1e-6)
    np.testing.assert_allclose(together[:3], together[117:], atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 1e-3


def test_an_accelerator_s_scanned_blocks_give_the_same_features(clip, tokenizer, monkeypatch):
    """There one block is compiled for every length of text, not one for each layer."""
    texts = ["sand", "a photo of a large red cloth with dots."]
    apart = encode_texts(clip.params["text"], clip.spec.text, tokenizer, texts)
    monkeypatch.setattr(module, "platform_of", lambda device: "tpu")
    scanned = encode_texts(clip.params["text"], clip.spec.text, tokenizer, texts)
    np.testing.assert_allclose(scanned, apart, atol=1e-5)


def test_a_name_with_the_end_of_a_text_in_it_is_refused(clip, tokenizer, tmp_path):
    """The text tower would read "sand" alone."""
    with pytest.raises(ClassesError, match=r"the class name 'sand<\|endoftext\|>water' holds the mark that ends"):
        text_embeddings(clip, tokenizer, parse_classes(["red", "sand<|endoftext|>water"]), TEMPLATES, tmp_path)


def test_rows_are_unit_means_over_the_templates(clip, tokenizer, tmp_path):
    embeddings = text_embeddings(clip, tokenizer, CLASSES, TEMPLATES, tmp_path)
    for row, prompt in zip(embeddings, CLASSES.prompts, strict=True):
        texts = [template.replace("{}", prompt) for template in TEMPLATES]
        features = encode_texts(clip.params["text"], clip.spec.text, tokenizer, texts)
        mean = (features / np.linalg.norm(features, axis=1, keepdims=True)).mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_the_tower_runs_once_for_a_model_its_templates_and_names(clip, tokenizer, tmp_path, monkeypatch):
    calls = []
    encode = module.encode_texts
    monkeypatch.setattr(module, "encode_texts", lambda *arguments: calls.append(1) or encode(*arguments))
    first = text_embeddings(clip, tokenizer, CLASSES, TEMPLATES, tmp_path)
    np.testing.assert_array_equal(text_embeddings(clip, tokenizer, CLASSES, TEMPLATES, tmp_path), first)
    assert len(calls) == 1
    text_embeddings(clip, tokenizer, CLASSES, TEMPLATES[:1], tmp_path)
    text_embeddings(clip, tokenizer, parse_classes(["water"]), TEMPLATES, tmp_path)
    assert len(calls) == 3


def test_unknown_words_are_named_in_every_run(clip, tokenizer, tmp_path):
    """The second run reads its features from the disk, and they mean as little as before."""
    for _ in range(2):
        with pytest.warns(UserWarning, match="the model does not know 'giraffe'") as caught:
            text_embeddings(clip, tokenizer, parse_classes(["giraffe"]), TEMPLATES, tmp_path)
        assert len(caught) == 1


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY garbage", None])
def test_a_damaged_cache_file_is_made_again(clip, tokenizer, tmp_path, damage):
    first = text_embeddings(clip, tokenizer, CLASSES, TEMPLATES, tmp_path)
    (path,) = tmp_path.rglob("*.npy")
    if damage is None:
        np.save(path, np.zeros_like(first))
    else:
        path.write_bytes(damage)
    np.testing.assert_array_equal(text_embeddings(clip, tokenizer, CLASSES, TEMPLATES, tmp_path), first)


def test_a_full_disk_leaves_no_part_of_a_file_and_the_run_goes_on(clip, tokenizer, tmp_path, monkeypatch):
    """A cache that cannot be written costs time in the next run, not this one: it was an error until 0.1."""
    expected = text_embeddings(clip, tokenizer, CLASSES, TEMPLATES, tmp_path / "whole")

    def fail(file, embeddings):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.np, "save", fail)
    with pytest.warns(UserWarning, match="nothing is kept for the next run.*No space"):
        found = text_embeddings(clip, tokenizer, CLASSES, TEMPLATES, tmp_path / "full")
    np.testing.assert_array_equal(found, expected)
    assert list((tmp_path / "full/text").iterdir()) == []


def test_prompts_are_cleaned_before_the_tower_reads_them(clip, tokenizer, tmp_path):
    """As typed on a phone or copied from a page, a class means what it means in plain letters."""
    plain = text_embeddings(clip, tokenizer, parse_classes(["sand", "a red cloth"]), TEMPLATES, tmp_path)
    fancy = parse_classes(["\uff33and", "a\u00a0&#114;ed cloth"])
    np.testing.assert_array_equal(text_embeddings(clip, tokenizer, fancy, TEMPLATES, tmp_path / "other"), plain)


def test_a_tokenizer_of_another_model_is_refused(clip, tokenizer, tmp_path):
    """Ids outside the table would be clamped, and a text without its end token would end at its first."""
    (tmp_path / "tokenizer.json").write_bytes(openai_tokenizer_files()["tokenizer.json"])
    other, spec = load_tokenizer(tmp_path), clip.spec.text
    with pytest.raises(ModelError, match=r"tokenizer\.json of the model is another model's: its text tower has"):
        encode_texts(clip.params["text"], spec, other, ["sand"])
    with pytest.raises(ModelError, match="and ends texts with 5;"):
        encode_texts(clip.params["text"], replace(spec, end_token=5), tokenizer, ["sand"])


@pytest.mark.parametrize("value", [0.0, 3e38])
def test_features_that_have_no_direction_are_refused(clip, tokenizer, value):
    """Finite weights can make them: every pixel got the same class without a word."""
    params = {
        **clip.params["text"],
        "projection": jax.tree.map(lambda x: x * 0 + value, dict(clip.params["text"]["projection"])),
    }
    with pytest.raises(ModelError, match="text features are zero or not finite"):
        encode_texts(params, clip.spec.text, tokenizer, ["sand"])
