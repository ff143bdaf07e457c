"""Rows of profiles that nobody ran, and programs that stand for trainings."""

from __future__ import annotations

import sys

from torchrl_vla.profiling.profile_cases import ProfileCase
from torchrl_vla.profiling.step_timings import statistics_of

ENVIRONMENT = {
    "torch": "2.13.0",
    "device": "cpu",
    "threads": 1,
    "cpu_capability": "AVX2",
    "deterministic": False,
    "matmul_precision": "highest",
    "machine": "one",
}


def make_row(number=0, forward=0.010, output="a", policy="fake", **changes):
    """Return a row whose forward passes take about as long as given, in seconds."""
    environment = {**ENVIRONMENT, **changes.pop("environment", {})}
    times = [forward * factor for factor in (0.99, 1.0, 1.01)] * 3
    row = {
        "schema_version": 1,
        "created_at": f"2026-01-0{number + 1}T00:00:00+00:00",
        "run_id": f"2026010{number + 1}T000000Z__{policy}",
        "policy": policy,
        "profile_mode": "summary",
        "git_commit": f"{number}" * 12,
        "git_ref": None,
        "pr_number": None,
        "status": "success",
        "return_code": 0,
        "wall_time_s": 1.0,
        "stderr_tail": [],
        "spec": {"steps": 12, "train_args": ["batch_size=4"]},
        "step_timing_summary": {
            "forward_s": statistics_of(times),
            "total_update_s": statistics_of([3 * time for time in times]),
            "dataloading_s": statistics_of([0.001] * 9),
            "peak_rss_bytes": 300 * 2**20,
            "environment": environment,
        },
        "deterministic_forward": {
            "seed": 0,
            "reference_batch_size": 4,
            "output_fingerprint": output,
            "operator_fingerprint": "ops",
            "environment": environment,
        },
        "missing_artifacts": [],
    }
    return row | changes


def fake_program(case: ProfileCase, run_dir, mode):
    """A training that writes a profile, or fails with 3 and a secret in its error."""
    if case.name == "failing":
        text = (
            "import sys; print('out'); "
            "[print('line', i, file=sys.stderr) for i in range(30)]; "
            "print('login token=s3cr3tvalue', file=sys.stderr); sys.exit(3)"
        )
        return [sys.executable, "-S", "-c", text]
    text = (
        "import pathlib, sys\n"
        "p = pathlib.Path(sys.argv[1])\n"
        "for d in ('torch_tables', 'torch_traces'): (p / d).mkdir(parents=True)\n"
        "(p / 'step_timing_summary.json').write_text('{\"profile_mode\": \"trace\"}')\n"
        "(p / 'deterministic_forward.json').write_text('{\"seed\": 0}')\n"
        "(p / 'torch_tables' / 'cpu_time_total.txt').write_text('table')\n"
        "(p / 'torch_traces' / 'trace_step_9.json').write_text('{}')\n"
        "train = p.parent / 'train'; train.mkdir(); (train / 'log').write_text('x')\n"
        "print('done')\n"
    )
    return [sys.executable, "-S", "-c", text, str(run_dir / "profiling")]
