"""What a training says about itself: a bar on a terminal, plain lines elsewhere."""

import time
from collections import defaultdict

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Called after every step with (step, progress 0..1, metrics); averages the metrics between lines.

    Metrics stay on the device until a line is due, so that steps need not wait for it.
    """

    def __init__(self, name: str, every: int = 25):
        self.name, self.every = name, every
        self._console = Console()
        self._bar = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task(name, total=1.0)
        self._metrics: dict[str, list[jax.Array]] = defaultdict(list)
        self._since = time.monotonic()

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, step: int, progress: float, metrics: dict[str, jax.Array]) -> None:
        for name, value in metrics.items():
            self._metrics[name].append(value)
        if self._bar:
            self._bar.update(self._task, completed=progress)
        if step % self.every and progress < 1.0:
            return
        means = {name: sum(map(float, values)) / len(values) for name, values in self._metrics.items()}
        count = len(self._metrics["loss"])
        seconds = (time.monotonic() - self._since) / count
        line = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        text = f"{self.name} step {step} {progress:.0%} {seconds:.2f} s/step {line}"
        if self._bar:
            self._console.print(text, highlight=False)
        else:
            print(text, flush=True)
        self._metrics.clear()
        self._since = time.monotonic()
