"""The logs of an evaluation while it runs: a JSON line an image, and TensorBoard's scalars."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from gla_jax.eval.records import ImageRecord
from gla_jax.eval.results import without_nan
from gla_jax.eval.tally import Tally, columns_of_records
from gla_jax.outputs.files import LineObjects, writing_to
from gla_jax.support.errors import UserError
from gla_jax.support.places import content_of, is_file, is_remote, put_files

Log = Callable[[ImageRecord], None]
SECONDS_TO_UPLOAD = 30.0  # between two copies of TensorBoard's file on an object store


@contextmanager
def logs(log: Path | None, tensorboard: Path | None, name: str, classes: int) -> Iterator[Log]:
    """A function that takes the record of every image that is measured, and writes it to the logs that are wanted.

    Args:
        log: a file for JSON lines.
        tensorboard: a folder for scalars.
        name: of the benchmark.
        classes: of the benchmark.

    Raises UserError when a log cannot be written, or tensorboardX is missing.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(image_lines(log, classes))] if log else []
        if tensorboard:
            writers.append(stack.enter_context(scalars(tensorboard, name, classes)))

        def log_all(record: ImageRecord) -> None:
            for write in writers:
                write(record)

        yield log_all


@contextmanager
def image_lines(path: Path, classes: int) -> Iterator[Log]:
    """A function that adds a line for every image to a file: id, mIoU in percent, size and seconds of each stage.

    On an object store, which has no appending, the lines of a few seconds are an object beside that file.
    """
    if is_remote(path):
        file = LineObjects(path)
        add = file.append
    else:
        if is_file(path) and content_of(path, 1) not in (b"", b"{"):
            raise UserError(f"{path} is no log of this command, which would add lines to it; choose another --log.")
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a", buffering=1)
            add = file.write

    def log(record: ImageRecord) -> None:
        (miou,) = Tally(classes).add(columns_of_records([record])).miou.tolist()
        line = {"image": record.image_id, "miou": miou, "size": record.size, "seconds": record.seconds}
        with writing_to(path):
            add(json.dumps(without_nan(line)) + "\n")

    with closing(file):
        yield log


@contextmanager
def scalars(folder: Path, name: str, classes: int) -> Iterator[Log]:
    """A function that writes scalars for every image of this process.

    NAME/miou and NAME/aacc of its images so far, percent; NAME/images_per_second since its first one;
    NAME/seconds/STAGE. An object store gets the whole file every half a minute. Raises UserError when tensorboardX is
    missing.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError('--tensorboard needs tensorboardX; pip install "gla-jax[tensorboard]".') from None
    tally, start = Tally(classes), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gla-jax-") as private, ExitStack() as stack:
        home, uploaded = Path(private) if is_remote(folder) else folder, start
        with writing_to(folder):
            writer = stack.enter_context(SummaryWriter(str(home)))

        def upload() -> None:
            if is_remote(folder):
                writer.flush()
                with writing_to(folder):
                    put_files(home, folder)

        def log(record: ImageRecord) -> None:
            nonlocal uploaded
            step = len(tally.add(columns_of_records([record])).image_ids)
            scores = tally.counts.areas.scores()
            rate = step / (time.monotonic() - start)
            figures = {"miou": scores.miou, "aacc": scores.aacc, "images_per_second": rate}
            for key, value in (figures | {f"seconds/{stage}": of for stage, of in record.seconds.items()}).items():
                writer.add_scalar(f"{name}/{key}", value, step)
            if time.monotonic() - uploaded > SECONDS_TO_UPLOAD:
                upload()
                uploaded = time.monotonic()

        try:
            yield log
        finally:
            upload()
