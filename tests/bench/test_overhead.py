"""gla-jax eval overhead: the loop beside a device that is busy."""

import time
from dataclasses import replace

from gla_jax.bench import overhead


def test_the_loop_is_measured_against_the_device_alone(monkeypatch):
    monkeypatch.setattr(overhead, "BUSY_SECONDS", 0.05)
    open_dataset = overhead.open_dataset

    def slow(*arguments):
        dataset = open_dataset(*arguments)
        return replace(dataset, read=lambda index: (time.sleep(0.1), dataset.read(index))[1])

    monkeypatch.setattr(overhead, "open_dataset", slow)
    cost = overhead.measure_overhead(overhead.Case("voc21", (48, 64), 3, synonyms=False))
    assert cost.device > 0.05
    assert cost.loop > 0.05
    # Of the timed run alone: the busy ones read every image twice more.
    assert 100 <= cost.milliseconds["decode (ahead)"] < 200
    assert {"read", "features", "labels", "decode (ahead)", overhead.PROCESSOR} <= set(cost.milliseconds)
