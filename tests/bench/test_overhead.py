"""gla-jax eval overhead: the loop beside a device that is busy."""

from gla_jax.bench import overhead


def test_the_loop_is_measured_against_the_device_alone(monkeypatch):
    monkeypatch.setattr(overhead, "BUSY_SECONDS", 0.05)
    cost = overhead.measure_overhead(overhead.Case("voc21", (48, 64), 3, synonyms=False))
    assert cost.device > 0.05
    assert cost.loop > 0.05
    assert {"read", "features", "labels", "decode (ahead)", overhead.PROCESSOR} <= set(cost.milliseconds)
