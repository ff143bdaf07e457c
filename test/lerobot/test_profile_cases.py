"""Profiles of LeRobot's policies at tiny size, in processes of their own."""

from __future__ import annotations

import pytest

from torchrl_vla.profiling import compare_profiles, find_cases, run_profiles
from torchrl_vla.profiling.profile_cases import PROFILE_CASES

pytestmark = pytest.mark.lerobot


def here():
    import lerobot

    names = [name for name, case in PROFILE_CASES.items() if case.extra == "lerobot"]
    # 0.4.4's pi0 wants a fork of transformers.
    return [n for n in names if n != "pi0" or not lerobot.__version__.startswith("0.4")]


def test_every_case_runs_and_act_has_the_same_numbers_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows, status = run_profiles(find_cases(here()), tmp_path / "once", "summary")
    assert status == 0, [row["stderr_tail"] for row in rows if row["return_code"]]
    for row in rows:
        assert row["missing_artifacts"] == [], row["policy"]
        assert row["step_timing_summary"]["forward_s"]["count"] == 9
        assert row["deterministic_forward"]["outputs"]["loss"]["sum"] > 0
    again, _ = run_profiles(find_cases(["act"]), tmp_path / "twice", "summary")
    comparison = compare_profiles(rows[0], again[0])
    assert (comparison.numerics, comparison.operators) == ("identical", "identical")
