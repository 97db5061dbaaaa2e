"""What an evaluation tells while it runs: a JSON line an image, and TensorBoard's scalars."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gla_jax.eval.records import ImageRecord
from gla_jax.eval.results import without_nan
from gla_jax.eval.tally import Tally, columns_of_records
from gla_jax.outputs.files import writing_to
from gla_jax.support.errors import UserError

if TYPE_CHECKING:
    pass

Log = Callable[[ImageRecord], None]


@contextmanager
def image_lines(path: Path, classes: int) -> Iterator[Log]:
    """A function that adds a line for every image to a file: id, mIoU in percent, size and seconds of each stage."""
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", buffering=1)

    def log(record: ImageRecord) -> None:
        (miou,) = Tally(classes).add(columns_of_records([record])).miou.tolist()
        line = {"image": record.image_id, "miou": miou, "size": record.size, "seconds": record.seconds}
        with writing_to(path):
            file.write(json.dumps(without_nan(line)) + "\n")

    with file:
        yield log


@contextmanager
def scalars(folder: Path, name: str, classes: int) -> Iterator[Log]:
    """A function that writes scalars for every image of this process.

    NAME/miou and NAME/aacc of its images so far, percent; NAME/images_per_second since its first one;
    NAME/seconds/STAGE. Raises UserError when tensorboardX is missing.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError('--tensorboard needs tensorboardX; pip install "gla-jax[tensorboard]".') from None
    tally, start = Tally(classes), time.monotonic()
    with writing_to(folder):
        writer: SummaryWriter = SummaryWriter(str(folder))

    def log(record: ImageRecord) -> None:
        step = len(tally.add(columns_of_records([record])).image_ids)
        scores = tally.counts.areas.scores()
        figures = {"miou": scores.miou, "aacc": scores.aacc, "images_per_second": step / (time.monotonic() - start)}
        for key, value in (figures | {f"seconds/{stage}": of for stage, of in record.seconds.items()}).items():
            writer.add_scalar(f"{name}/{key}", value, step)

    with writer:
        yield log
