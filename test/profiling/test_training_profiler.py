from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from counting_dataset import counting_dataset
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from torchrl_vla.errors import ArgumentTypeError, SchemaError, SettingsError
from torchrl_vla.policies import ContinuousVLAWrapper
from torchrl_vla.profiling import (
    ProfileOptions,
    Sections,
    TrainingProfiler,
    read_step_samples,
    training_profiler,
)
from torchrl_vla.recipes import (
    TrainingSettings,
    make_cloning_loss,
    train_behavior_cloning,
)
from torchrl_vla.recipes.behavior_cloning import make_training_transform
from torchrl_vla.recipes.training_loop import ramped_average, warmup_cosine
from torchrl_vla.spaces import ModelSpace

SHORT = "ignore:TrainingProfiler. expected at least 9 steps:UserWarning"
SETTINGS = TrainingSettings(steps=12, batch_size=4, lr=0.05)


class Small(ContinuousVLAWrapper):
    """Its loss draws random numbers."""

    def __init__(self):
        super().__init__(action_dim=1, chunk_size=2)
        self.layer = nn.Linear(1, 2)
        self.dropout = nn.Dropout(0.5)

    def predict_chunk(self, tensordict):
        hidden = self.dropout(self.layer(tensordict["observation", "state"]))
        return hidden.unsqueeze(-1)


def train(profiler, settings=SETTINGS, **options):
    torch.manual_seed(0)
    policy = Small()
    train_behavior_cloning(
        policy,
        counting_dataset(),
        settings,
        profiler=profiler,
        progress=False,
        **options,
    )
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def read(folder):
    return json.loads((folder / "step_timing_summary.json").read_text())


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced")
    return folder, train(TrainingProfiler(folder, "trace"))


def test_a_training_of_twelve_steps_writes_every_file(traced):
    folder, _ = traced
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")}
    assert found == {
        "step_samples.jsonl",
        "step_timing_summary.json",
        "deterministic_forward.json",
        "deterministic_forward_ops.txt",
        "torch_tables/cpu_time_total.txt",
        "torch_tables/cpu_memory.txt",
        "torch_tables/flops.txt",
        "torch_traces/trace_step_9.json",
    }


def test_the_weights_are_those_of_a_training_without_a_profiler(traced, tmp_path):
    expected = train(None)
    assert torch.equal(traced[1], expected)
    for mode in ("timing", "summary"):
        assert torch.equal(train(TrainingProfiler(tmp_path / mode, mode)), expected)


def train_without_the_code():
    """The same training, written out: no section, no profiler, no check."""
    torch.manual_seed(0)
    policy, dataset = Small(), counting_dataset()
    loss = make_cloning_loss(policy)
    transform = make_training_transform(
        policy, ModelSpace(dataset.metadata), dataset.storage
    )
    buffer = dataset.replay_buffer(4, transform=transform)
    buffer.set_rng(torch.Generator().manual_seed(SETTINGS.seed))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.05, weight_decay=1e-4)
    schedule = LambdaLR(optimizer, warmup_cosine(SETTINGS.steps))
    average = AveragedModel(policy, multi_avg_fn=ramped_average(0.99))
    policy.train()
    for _ in range(SETTINGS.steps):
        optimizer.zero_grad()
        loss(buffer.sample())["loss_bc"].backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(policy)
    return torch.cat([p.detach().flatten() for p in average.module.parameters()])


def test_without_a_profiler_the_weights_are_those_of_a_training_without_the_code():
    assert torch.equal(train(None), train_without_the_code())


def test_off_builds_nothing_writes_nothing_and_reads_no_clock(tmp_path, monkeypatch):
    def forbidden(*arguments):
        raise AssertionError("profiling is off")

    monkeypatch.setattr(training_profiler, "_clock", forbidden)
    monkeypatch.setattr(TrainingProfiler, "__init__", forbidden)
    monkeypatch.setattr(training_profiler.DeviceMeter, "synchronize", forbidden)
    monkeypatch.chdir(tmp_path)
    options = ProfileOptions("off")
    profiler = TrainingProfiler.from_options(options, tmp_path / "run")
    assert profiler is None
    train(profiler)
    assert list(tmp_path.iterdir()) == []


def test_sections_and_other_add_up_to_each_step(traced):
    samples = read_step_samples(traced[0])
    assert [sample.step for sample in samples] == list(range(1, 13))
    for sample in samples:
        names = ["forward", "backward", "grad_clip", "optimizer", "other"]
        assert sorted(sample.sections) == sorted(names)
        assert sum(sample.sections.values()) == pytest.approx(
            sample.total_update_s, abs=1e-9
        )
        assert min(sample.sections.values()) > 0
        assert sample.dataloading_s > 0


def test_the_summary_has_the_documented_fields_and_sorted_keys(traced):
    folder, _ = traced
    text = (folder / "step_timing_summary.json").read_text()
    summary = json.loads(text)
    assert text == json.dumps(summary, indent=4, sort_keys=True)
    assert summary["profile_mode"] == "trace"
    for name in ("total_update", "dataloading", "forward", "backward", "optimizer"):
        stats = summary[f"{name}_s"]
        assert {"count", "mean", "median", "min", "max", "p95"} <= stats.keys()
        assert stats["count"] == 9  # of twelve, three warm up
    assert summary["warmup"]["forward_s"]["count"] == 3
    assert summary["memory_timeline"] == []  # on the CPU
    assert not [name for name in summary if name.startswith("peak_memory")]


def test_the_statistics_are_those_of_numpy(traced):
    samples = [s for s in read_step_samples(traced[0]) if not s.is_warmup]
    values = np.array([sample.sections["forward"] for sample in samples])
    stats = read(traced[0])["forward_s"]
    expected = {
        "mean": values.mean(),
        "median": np.median(values),
        "min": values.min(),
        "max": values.max(),
        **{f"p{q}": np.percentile(values, q) for q in (25, 50, 75, 95, 99)},
    }
    for name, value in expected.items():
        assert stats[name] == pytest.approx(value, rel=1e-9), name


def test_the_tables_have_operators_and_the_trace_has_events(traced):
    folder, _ = traced
    for table in (folder / "torch_tables").iterdir():
        assert "aten::" in table.read_text(), table.name
    trace = json.loads((folder / "torch_traces" / "trace_step_9.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::addmm" in names


def test_a_summary_has_no_trace(tmp_path):
    train(TrainingProfiler(tmp_path, "summary"))
    assert list((tmp_path / "torch_traces").iterdir()) == []
    assert (tmp_path / "torch_tables" / "flops.txt").exists()


def test_timing_runs_no_profiler_of_pytorchs(tmp_path, monkeypatch):
    monkeypatch.setattr(training_profiler, "OperatorRecording", None)
    train(TrainingProfiler(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"step_samples.jsonl", "step_timing_summary.json"}


@pytest.mark.parametrize("mode", ["timing", "summary", "trace"])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5])
def test_a_short_run_warns_and_does_not_crash(tmp_path, mode, steps):
    profiler = TrainingProfiler(tmp_path, mode)
    with pytest.warns(UserWarning, match=f"at least 9 steps, got {steps}: 3 warm up"):
        take_steps(profiler, steps)
    summary = read(tmp_path)
    assert summary["total_update_s"]["count"] == max(0, steps - 3)
    if steps <= 3:
        assert summary["total_update_s"]["mean"] is None
    assert summary["warmup"]["total_update_s"]["count"] == min(steps, 3)


@pytest.mark.filterwarnings(SHORT)
def test_a_section_is_measured_also_when_it_raises(tmp_path):
    profiler = TrainingProfiler(tmp_path, warmup_steps=0)
    with profiler.running(), profiler.measured_step(1):
        with pytest.raises(ZeroDivisionError):
            sleep_and_raise(profiler, 0.02)
        for _ in range(3):
            with profiler.section("backward"):
                pass
    (sample,) = read_step_samples(tmp_path)
    assert 0.02 <= sample.sections["forward"] < 1
    assert sample.calls == {"forward": 1, "backward": 3}


@pytest.mark.filterwarnings(SHORT)
def test_a_section_inside_another_is_not_counted_twice(tmp_path):
    profiler = TrainingProfiler(tmp_path, warmup_steps=0)
    with profiler.running(), profiler.measured_step(1), profiler.section("collect"):
        section = profiler.section("policy_call")
        with section:
            time.sleep(0.01)
    (sample,) = read_step_samples(tmp_path)
    assert sample.inside == ["policy_call"]
    outer = sample.sections["collect"] + sample.sections["other"]
    assert outer == pytest.approx(sample.total_update_s, abs=1e-9)
    assert sample.sections["collect"] >= sample.sections["policy_call"] >= 0.01


@pytest.mark.filterwarnings(SHORT)
def test_fetching_a_batch_is_apart_from_the_update(tmp_path):
    profiler = TrainingProfiler(tmp_path, warmup_steps=0)
    with profiler.running(), profiler.measured_step(1):
        fetching = profiler.section("dataloading")
        with fetching:
            time.sleep(0.05)
    (sample,) = read_step_samples(tmp_path)
    assert sample.dataloading_s >= 0.05 > sample.total_update_s


@pytest.mark.filterwarnings(SHORT)
def test_times_that_a_training_measured_itself_are_taken_as_they_are(tmp_path):
    profiler = TrainingProfiler(tmp_path, warmup_steps=0)
    meter = SimpleNamespace(val=0.25)
    with profiler.running():
        profiler.step(1, SimpleNamespace(update_s=2, dataloading_s=0.5))
        profiler.step(2, SimpleNamespace(update_s=meter, dataloading_s=meter))
        with pytest.raises(ArgumentTypeError, match="'val', as update_s, got str"):
            profiler.step(3, SimpleNamespace(update_s="2", dataloading_s=0.5))
    found = [(s.total_update_s, s.dataloading_s) for s in read_step_samples(tmp_path)]
    assert found == [(2.0, 0.5), (0.25, 0.25)]


def take_steps(profiler, steps):
    with profiler.running():
        for step in range(steps):
            with profiler.measured_step(step), profiler.section("forward"):
                torch.ones(3).sum()


def sleep_and_raise(profiler, seconds):
    with profiler.section("forward"):
        time.sleep(seconds)
        raise ZeroDivisionError


class CrashError(Exception):
    pass


@pytest.mark.filterwarnings(SHORT)
def test_a_training_that_crashes_leaves_its_summary(tmp_path):
    profiler = TrainingProfiler(tmp_path / "profile")

    def crash(step):
        raise CrashError

    with pytest.raises(CrashError):
        train(profiler, TrainingSettings(steps=12, log_interval=7), callback=crash)
    assert [s.step for s in read_step_samples(tmp_path / "profile")] == [*range(1, 8)]
    assert read(tmp_path / "profile")["total_update_s"]["count"] == 4
    profiler.finalize()  # again changes nothing


@pytest.mark.filterwarnings(SHORT)
def test_a_step_that_raises_is_left_out(tmp_path):
    profiler = TrainingProfiler(tmp_path, warmup_steps=0)
    with profiler.running():
        with (
            pytest.raises(CrashError),
            profiler.measured_step(1),
            profiler.section("forward"),
        ):
            raise CrashError
        with profiler.measured_step(2):
            pass
    (sample,) = read_step_samples(tmp_path)
    assert (sample.step, sample.sections) == (2, {})


def test_a_process_killed_at_step_seven_leaves_six_steps(tmp_path):
    program = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_training_profiler import Small, TrainingProfiler, train\n"
        "predict, calls = Small.predict_chunk, []\n"
        "def deadly(self, tensordict):\n"
        "    calls.append(0)\n"
        "    if len(calls) == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return predict(self, tensordict)\n"
        "Small.predict_chunk = deadly\n"
        "train(TrainingProfiler(sys.argv[1]))\n"
    )
    here = os.path.dirname(__file__)
    paths = [here, os.path.join(os.path.dirname(here), "support")]
    command = [sys.executable, "-c", program, str(tmp_path), *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [sample.step for sample in read_step_samples(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_line_that_was_cut_off_is_left_out_and_a_damaged_one_named(tmp_path):
    file = tmp_path / "step_samples.jsonl"
    whole = '{"step": 1, "is_warmup": false, "total_update_s": 1, "dataloading_s": 0, '
    whole += '"sections": {}}\n'
    file.write_text(whole + whole[:20])
    assert [sample.step for sample in read_step_samples(tmp_path)] == [1]
    file.write_text('{"steps": 1}\n')
    with pytest.raises(SchemaError, match="expected one sample per line"):
        read_step_samples(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"a file at .*step_samples.jsonl', got nothing"
    ):
        read_step_samples(tmp_path / "nothing")


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(SettingsError, match=r"'off', 'timing', 'summary', 'trace'"):
        ProfileOptions("cprofile")
    with pytest.raises(SettingsError, match="Pass None in place of a profiler"):
        TrainingProfiler("folder", "off")


def test_the_profile_lies_in_the_folder_of_the_training_unless_told(tmp_path):
    made = TrainingProfiler.from_options(ProfileOptions("timing"), tmp_path / "run")
    assert made.folder == tmp_path / "run" / "profiling"
    options = ProfileOptions("timing", tmp_path / "elsewhere")
    made = TrainingProfiler.from_options(options, tmp_path / "run")
    assert made.folder == tmp_path / "elsewhere"


def test_a_step_outside_of_a_run_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"after start\(\) and before"):
        TrainingProfiler(tmp_path).step(1, SimpleNamespace(update_s=1, dataloading_s=0))


@pytest.mark.filterwarnings(SHORT)
def test_calls_of_a_method_are_a_section_and_the_method_comes_back(tmp_path):
    profiler = TrainingProfiler(tmp_path, warmup_steps=0)
    layer = nn.Linear(1, 1)
    with profiler.running(), profiler.measured_step(1):
        timed = Sections(profiler).calls((layer, "forward", "policy_call"))
        with profiler.section("collect"), timed:
            layer(torch.ones(1)), layer(torch.ones(1))
        layer(torch.ones(1))
    (sample,) = read_step_samples(tmp_path)
    assert sample.calls == {"policy_call": 2, "collect": 1}
    assert "forward" not in vars(layer)


@pytest.mark.filterwarnings(SHORT)
def test_a_resumed_training_adds_its_steps_and_warms_up_again(tmp_path):
    for steps in ([1, 2], [3, 4]):
        profiler = TrainingProfiler(tmp_path, warmup_steps=1)
        with profiler.running():
            for step in steps:
                with profiler.measured_step(step):
                    pass
    found = [(s.step, s.is_warmup) for s in read_step_samples(tmp_path)]
    assert found == [(1, True), (2, False), (3, True), (4, False)]
