"""The lines of docs/formats.md that hand a result to other Python packages, run as they stand there."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gla_jax.results.segmentation import Segmentation
from tests.test_docs import ROOT, blocks

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the packages' own dependencies
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def result():
    """Three classes, of which the second does not occur."""
    labels = np.zeros((12, 16), np.uint8)
    labels[3:9, 4:12] = 2
    return Segmentation(labels, ("sand", "water", "brick"), np.zeros((12, 16, 3), np.uint8), None)


def documented(package, result):
    """The names that the block of a package leaves."""
    names = {"result": result}
    (text,) = (text for needs, _, text in blocks(ROOT / "docs/formats.md") if needs == package)
    exec(compile(text, "formats.md", "exec"), names)
    return names


def test_supervision_gets_the_masks(result):
    pytest.importorskip("supervision", reason="supervision is not installed")
    detections = documented("supervision", result)["detections"]
    assert detections.class_id.tolist() == [0, 2]
    assert (detections.mask == (result.labels == detections.class_id[:, None, None])).all()
    assert detections.xyxy[1].tolist() == [4, 3, 11, 8]
    import supervision

    drawn = supervision.MaskAnnotator(opacity=1).annotate(result.image.copy(), detections)
    colours = np.unique(drawn.reshape(-1, 3), axis=0, return_inverse=True)[1].reshape(result.labels.shape)
    assert (colours == colours[0, 0]).astype(int).tolist() == (result.labels == 0).astype(int).tolist()


def test_fiftyone_gets_the_labels(result, tmp_path, monkeypatch):
    """The sample and its mask on disk; a data set would start FiftyOne's database server."""
    monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
    pytest.importorskip("fiftyone", reason="FiftyOne is not installed")
    sample = documented("fiftyone", result)["sample"]
    assert Path(sample.filepath).name == "scene.png"
    sample.prediction.export_mask(str(tmp_path / "mask.png"))
    with Image.open(tmp_path / "mask.png") as picture:
        assert (np.asarray(picture) == result.labels).all()
