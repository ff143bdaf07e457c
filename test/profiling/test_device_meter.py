from __future__ import annotations

import json

import pytest
import torch

from torchrl_vla.profiling import TrainingProfiler, read_step_samples
from torchrl_vla.profiling.device_meter import DeviceMeter


class FakeDevice:
    """Stands for ``torch.cuda`` and notes the calls."""

    def __init__(self):
        self.calls = []

    def synchronize(self):
        self.calls.append("synchronize")

    def reset_peak_memory_stats(self):
        self.calls.append("reset")

    def memory_allocated(self):
        self.calls.append("allocated")
        return 10

    def memory_reserved(self):
        self.calls.append("reserved")
        return 20

    def max_memory_allocated(self):
        return 30

    def max_memory_reserved(self):
        return 40


@pytest.mark.filterwarnings("ignore:TrainingProfiler. expected at least 9 steps")
def test_a_section_waits_for_the_device_before_and_after(tmp_path, monkeypatch):
    fake = FakeDevice()
    monkeypatch.setattr(DeviceMeter, "of", classmethod(lambda cls, device: cls(fake)))
    profiler = TrainingProfiler(tmp_path, warmup_steps=0)
    with profiler.running(), profiler.measured_step(1), profiler.section("forward"):
        fake.calls.append("work")
    wait = "synchronize"
    assert fake.calls == [
        *("reset", wait, wait, "work", wait, wait),
        *("allocated", "reserved"),
    ]
    (sample,) = read_step_samples(tmp_path)
    assert sample.memory == {"allocated_bytes": 10, "reserved_bytes": 20}
    summary = json.loads((tmp_path / "step_timing_summary.json").read_text())
    assert summary["memory_timeline"] == [
        {"step": 1, "allocated_bytes": 10, "reserved_bytes": 20}
    ]
    assert summary["peak_memory_allocated_bytes"] == 30
    assert summary["peak_memory_reserved_bytes"] == 40


def test_the_cpu_has_no_memory_of_a_device_but_that_of_the_process():
    meter = DeviceMeter.of(torch.device("cpu"))
    meter.begin()
    assert meter.memory() == {}
    (name,) = meter.peaks()
    assert name == "peak_rss_bytes"
    assert meter.peaks()[name] > 50e6  # PyTorch alone is larger
