"""One call from Python, and the output that transformers' users expect."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PretrainedConfig
from transformers.pipelines import ImageSegmentationPipeline

import gla_jax
from gla_jax.tiny_world.scenes import render

CLASSES = ["wood", "sand", "a blue cloth with crosses"]
SETTINGS = {"short_side": 128, "crop": 64, "stride": 32}


@pytest.fixture(scope="module")
def photo():
    return render(9, 160, 200, "test").image


def test_one_call_gives_what_the_segmenter_gives(photo):
    expected = gla_jax.Segmenter.from_pretrained("tiny-world", **SETTINGS)(photo, CLASSES)
    found = gla_jax.segment(photo, CLASSES, model="tiny-world", settings=SETTINGS)
    assert (found.labels == expected.labels).all()
    both = gla_jax.segment([photo, photo[:, ::-1]], CLASSES, model="tiny-world", settings=SETTINGS)
    assert (both[0].labels == expected.labels).all()
    assert both[1].labels.shape == expected.labels.shape


def test_the_output_is_that_of_transformers_pipeline(photo):
    """transformers' own class, given a model that answers with our labels, returns the same list."""
    result = gla_jax.segment(photo, CLASSES, model="tiny-world", settings=SETTINGS)
    theirs = ImageSegmentationPipeline.__new__(ImageSegmentationPipeline)

    class Processor:
        def post_process_semantic_segmentation(self, outputs, target_sizes):
            return [torch.from_numpy(result.labels.astype(np.int64))]

    theirs.image_processor = Processor()
    theirs.model = type("Model", (), {"config": PretrainedConfig(id2label=dict(enumerate(CLASSES)))})()
    expected = theirs.postprocess({"target_size": [photo.shape[:2]]})
    found = gla_jax.image_segmentation("tiny-world", **SETTINGS)(Image.fromarray(photo), candidate_labels=CLASSES)
    assert len(found) == len(expected) > 1
    for ours, other in zip(found, expected, strict=True):
        assert list(ours) == list(other)
        assert (ours["label"], ours["score"]) == (other["label"], other["score"])
        assert ours["mask"].mode == other["mask"].mode
        assert (np.asarray(ours["mask"]) == np.asarray(other["mask"])).all()


def test_a_list_of_images_gives_a_list_of_lists(photo):
    pipe = gla_jax.image_segmentation("tiny-world", **SETTINGS)
    found = pipe([photo, photo], candidate_labels=CLASSES, scores=True)
    assert len(found) == 2
    assert 0 < found[0][0]["score"] <= 1


def test_a_segmenter_says_what_it_is():
    text = repr(gla_jax.Segmenter.from_pretrained("tiny-world", method="clearclip"))
    assert text == "<Segmenter tiny-world: clearclip; short side 336, crop 224, stride 112; float32>"
