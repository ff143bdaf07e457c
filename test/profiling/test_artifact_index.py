from __future__ import annotations

from torchrl_vla.profiling.artifact_index import build_artifact_index

FILES = (
    *("stdout.txt", "stderr.txt", "train/log.csv"),
    "profiling/step_timing_summary.json",
    "profiling/deterministic_forward.json",
    "profiling/torch_tables/cpu_time_total.txt",
    "profiling/torch_traces/trace_step_9.json",
)


def test_the_reference_layout_has_six_targets_without_the_training(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    index = build_artifact_index("me/history", tmp_path, "act", "run", "refs/pr/3")
    assert len(index.targets) == 6
    root = "artifacts/act/run"
    assert index.row_path == index.paths["row"] == "rows/act/run.json"
    assert index.paths["stdout"] == f"{root}/stdout.txt"
    assert index.paths["torch_tables"] == {
        "cpu_time_total.txt": f"{root}/profiling/torch_tables/cpu_time_total.txt"
    }
    assert list(index.paths["trace_files"]) == ["trace_step_9.json"]
    assert set(index.paths["profiling_files"]) == {
        name.removeprefix("profiling/") for name in FILES if "profiling/" in name
    }
    assert index.urls["step_timing_summary"].endswith(
        f"/datasets/me/history/resolve/refs/pr/3/{root}/profiling/"
        "step_timing_summary.json"
    )
    assert not [name for name in index.targets.values() if "train" in name]


def test_files_that_are_not_there_have_no_entry(tmp_path):
    index = build_artifact_index("me/history", tmp_path, "act", "run")
    assert set(index.paths) == {"row", "profiling_files", "torch_tables", "trace_files"}
    assert index.targets == {}
