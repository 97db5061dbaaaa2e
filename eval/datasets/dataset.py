"""Benchmark data opened: folders, a TensorFlow Datasets copy or generated scenes."""

import hashlib
from pathlib import Path

from gla_jax.eval.benchmarks import BENCHMARKS, FOLDER, TINY_WORLD, ClassNames, class_names
from gla_jax.eval.datasets.examples import Dataset, Example, example_reader, examples
from gla_jax.eval.datasets.folders import find_copy, find_folders, has_images
from gla_jax.eval.datasets.labels import NAMED, label_code
from gla_jax.eval.datasets.tars import find_tars, open_tars
from gla_jax.eval.metrics.areas import IGNORE
from gla_jax.support.errors import DataError
from gla_jax.support.files import cache_folder, read_json
from gla_jax.support.places import is_file, is_folder, local_copy

CLASSES_FILE, CLASSES_JSON = "classes.txt", "classes.json"
TINY_WORLD_SIZE = (336, 448)

__all__ = ["TINY_WORLD_SIZE", "Dataset", "Example", "example_reader", "examples", "open_dataset"]


def open_dataset(benchmark: str, data: Path | None, unlabelled: bool = False, kept: Path | None = None) -> Dataset:
    """The data of a benchmark: `data` holds mmsegmentation's folders, tars, or a copy made by `gla-jax eval prepare`.

    tiny-world needs no data; unlabelled: the benchmark `folder` may be images without a folder of labels;
    kept: DataFiles.fingerprint's. Raises DataError when something is missing.
    """
    if benchmark not in BENCHMARKS:
        raise DataError(f"{benchmark} is not a benchmark of this version; gla-jax eval --list shows them.")
    if benchmark == TINY_WORLD:
        return _tiny_world()
    if data is None:
        raise DataError(f"{benchmark} reads images from a folder; name it with --data.")
    is_tar = data.suffix == ".tar" and is_file(data)
    if not is_tar and not is_folder(data):
        holds = (
            f"one with images/, labels/ and {CLASSES_FILE}"
            if benchmark == FOLDER
            else f"the one that holds {benchmark}"
        )
        raise DataError(f"{data} is not a folder; --data names {holds}.")
    # A tar beside the folders of a layout is the one that was unpacked there.
    if is_tar or (not has_images(BENCHMARKS[benchmark], data) and find_tars(data)):
        tars = find_tars(data)
        names = _names_of_folder(data.parent if is_tar else data) if benchmark == FOLDER else class_names(benchmark)
        return open_tars(benchmark, tars, names, labelled=not (unlabelled and benchmark == FOLDER))
    if benchmark != FOLDER and (copy := find_copy(benchmark, data)):
        from gla_jax.eval.datasets.tfds_copy import open_copy

        return open_copy(benchmark, local_copy(copy, lambda: cache_folder("copies")))
    return _folders(benchmark, data, unlabelled, kept)


def _folders(benchmark: str, data: Path, unlabelled: bool, kept: Path | None) -> Dataset:
    row = BENCHMARKS[benchmark]
    labelled = not unlabelled or benchmark != FOLDER or (data / row.layouts[0].labels).exists()
    files = find_folders(row, data, labelled)
    names = _names_of_folder(data) if benchmark == FOLDER else class_names(benchmark)
    code = label_code(NAMED if NAMED in names.tables else files.layout.encoding, len(names.classes), names.tables)
    read_example = example_reader(benchmark, code)

    def read(index: int) -> Example:
        pair = files.pairs[index]
        return read_example(pair.image_id, pair.image, pair.label)

    ids = tuple(pair.image_id for pair in files.pairs)
    return Dataset(benchmark, str(files.root), ids, read, files.fingerprint(kept), names, code.ignore, labelled)


def _names_of_folder(data: Path) -> ClassNames:
    from gla_jax.text.prompts import check_enough, parse_classes, read_lines

    path, named = data / CLASSES_FILE, data / CLASSES_JSON
    if named.is_file():
        if path.is_file():
            raise DataError(
                f"{data} has both {CLASSES_FILE} and {CLASSES_JSON}; leave the one that names the labels' indices."
            )
        lines, table = _named_values(named)
        classes = parse_classes(dict.fromkeys(lines, ()))
        check_enough(classes)
        return ClassNames(classes.names, None, {"sclip": tuple((name,) for name in classes.names)}, {NAMED: table})
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; write one class a line there, in the order of the labels' indices, or "
            f'{CLASSES_JSON} with {{"index": "name"}}.'
        )
    classes = parse_classes(read_lines(path, "class"))
    check_enough(classes)
    synonyms: list[list[str]] = [[] for _ in classes.names]
    for prompt, index in zip(classes.prompts, classes.class_of_prompt, strict=True):
        synonyms[index].append(prompt)
    return ClassNames(classes.names, None, {"sclip": tuple(map(tuple, synonyms))}, {})


def _named_values(path: Path) -> tuple[list[str], dict[int, int]]:
    """Names in the order of their values in labels, and the class of every value: those without a name are ignored.

    Raises DataError.
    """
    content = read_json(path, "the names of the labels' indices", 'write {"index": "name"}', DataError)
    wrong = DataError(f'{path} does not name indices; write {{"index": "name"}}, indices from 0 to {IGNORE - 1}.')
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise wrong
    if not all(key.isascii() and key.isdecimal() and int(key) < IGNORE for key in content):
        raise wrong
    if len(set(map(int, content))) < len(content):
        raise DataError(f"{path} names an index twice; name each once.")
    if len(set(content.values())) < len(content):
        raise DataError(f"{path} has one name for several indices; give each its own.")
    values = sorted(content, key=int)
    table = dict.fromkeys(range(IGNORE), IGNORE) | {int(value): index for index, value in enumerate(values)}
    return [content[value] for value in values], table


def _tiny_world() -> Dataset:
    from gla_jax.tiny_world.scenes import render

    def read(index: int) -> Example:
        scene = render(index, *TINY_WORLD_SIZE, split="test")
        return Example(ids[index], scene.image, scene.labels)

    ids = tuple(f"scene-{index:04d}" for index in range(BENCHMARKS[TINY_WORLD].images))
    fingerprint = hashlib.sha256(read(0).image.tobytes()).hexdigest()
    return Dataset(TINY_WORLD, "drawn on the fly", ids, read, fingerprint, class_names(TINY_WORLD), 255)
