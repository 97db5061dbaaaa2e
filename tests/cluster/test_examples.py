"""The job files must be what their schedulers take, and their commands what this program takes."""

import argparse
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer

from gla_jax.cli.app import app

FOLDER = Path(__file__).parents[2] / "examples/cluster"
# What the job files use of sbatch, by its manual.
SBATCH = {
    "job-name": r"[\w-]+",
    "array": r"\d+-\d+(%\d+)?",
    "ntasks": r"\d+",
    "gpus": r"\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[KMGT]",
    "time": r"(\d+-)?\d\d:\d\d:\d\d",
    "output": r"[\w%.-]+",
    "requeue": None,
}


def check_command(words):
    """Fail when the command line does not take these words; nothing is run."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *words = words
        if name not in command.commands:
            name, words = "run", [name, *words]
        command = command.commands[name]
    context = command.make_context(command.name, list(words), resilient_parsing=False)
    return context.params


def commands_in(text):
    text = re.sub(r"\\\n\s*", " ", text)
    lines = (re.sub(r"^[A-Z_]+=\S+ ", "", line.strip()) for line in text.splitlines())
    # The end of a command in quotes takes their last one along.
    closed = (line[:-1] if line.count('"') % 2 else line for line in lines)
    return [shlex.split(line)[1:] for line in closed if line.startswith("gla-jax ")]


@pytest.mark.parametrize("name", ["slurm_array.sh", "slurm_merge.sh", "tpu_slice.sh"])
def test_scripts_parse_and_call_commands_that_exist(name):
    subprocess.run(["bash", "-n", FOLDER / name], check=True)
    (words,) = commands_in((FOLDER / name).read_text())
    assert check_command(words)


def test_the_commands_are_checked():
    """The check itself must not let a misspelt option through."""
    with pytest.raises(typer.BadParameter.__base__):
        check_command(["eval", "voc21", "--shards", "0/3"])


@pytest.mark.parametrize("name", ["slurm_array.sh", "slurm_merge.sh"])
def test_the_options_of_sbatch(name):
    lines = re.findall(r"^#SBATCH (.*)$", (FOLDER / name).read_text(), re.M)
    parser = argparse.ArgumentParser(exit_on_error=False)
    for option, pattern in SBATCH.items():
        parser.add_argument(f"--{option}", **({"action": "store_true"} if pattern is None else {}))
    values = vars(parser.parse_args(lines))
    assert len(lines) >= 6
    for option, pattern in SBATCH.items():
        value = values[option.replace("-", "_")]
        assert pattern is None or value is None or re.fullmatch(pattern, value), (option, value)


def test_the_kubernetes_job():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    job = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["completionMode"] == "Indexed"
    index = r"$(JOB_COMPLETION_INDEX)"
    words = [word.replace(index, "7") for word in container["args"]]
    shard = [word for word in words if word.startswith("--shard")]
    assert shard == [f"--shard=7/{spec['completions']}"]
    check_command([word.replace("gs://", "memory://") for word in words])


def test_the_kubernetes_job_fits_the_schema_of_its_version():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
    validate.validate(job, "1.33", strict=True)
    job["spec"]["completion"] = 3
    with pytest.raises(validate.ValidationError):
        validate.validate(job, "1.33", strict=True)


def test_the_container_file():
    """Stages, no root at the end, files that the checkout has, extras that exist."""
    root = FOLDER.parents[1]
    text = re.sub(r"\\\n\s*", " ", (root / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    names = [name for name, _ in lines]
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert set(names) <= known
    assert names.count("FROM") == 2
    user = [value for name, value in lines if name == "USER"][-1]
    assert user.isdigit()
    assert int(user) > 0
    for name, value in lines:
        if name == "COPY" and not value.startswith("--from"):
            *sources, _ = value.split()
            assert all((root / source).exists() for source in sources)
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"EXTRAS=([\w,]+)", text)
    assert len(named) == 2
    assert {extra for names in named for extra in names.split(",")} <= extras.keys()
    runs = commands_in(re.sub(r"(?m)^#\s+docker run .*? gla-jax:\w+ ", "gla-jax ", text))
    assert len(runs) == 2
    assert all(map(check_command, runs))
