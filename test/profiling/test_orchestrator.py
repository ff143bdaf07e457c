from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fake_profiles import fake_program

from torchrl_vla.errors import MissingExtraError, SettingsError
from torchrl_vla.profiling.hub_publication import HubPublisher
from torchrl_vla.profiling.orchestrator import (
    RunProvenance,
    case_program,
    check_case_packages,
    run_profiles,
)
from torchrl_vla.profiling.profile_cases import ProfileCase, find_cases

CASES = [ProfileCase(name, "tiny") for name in ("first", "failing", "last")]
PROVENANCE = RunProvenance("0123abc", "main", 7)
FIELDS = {
    *("schema_version", "created_at", "run_id", "policy", "profile_mode"),
    *("git_commit", "git_ref", "pr_number", "status", "return_code", "wall_time_s"),
    *("stderr_tail", "spec", "step_timing_summary", "deterministic_forward"),
    *("missing_artifacts", "artifact_paths", "artifact_urls"),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiles")
    rows, status = run_profiles(
        CASES, folder, provenance=PROVENANCE, program=fake_program
    )
    return folder, rows, status


def test_a_case_that_fails_does_not_stop_the_others(ran):
    _, rows, status = ran
    found = [(row["policy"], row["status"], row["return_code"]) for row in rows]
    assert found == [
        ("first", "success", 0),
        ("failing", "failed", 3),
        ("last", "success", 0),
    ]
    assert status == 1


def test_the_row_has_the_documented_fields_and_is_on_the_disk(ran):
    folder, rows, _ = ran
    for row in rows:
        assert set(row) == FIELDS
        run_dir = folder / row["policy"] / row["run_id"]
        text = (run_dir / "profiling_row.json").read_text()
        assert json.loads(text) == row
        assert text == json.dumps(row, indent=4, sort_keys=True)
    row = rows[0]
    assert row["schema_version"] == 1
    assert (row["git_commit"], row["git_ref"], row["pr_number"]) == (
        *("0123abc", "main"),
        7,
    )
    assert row["spec"]["steps"] == 12
    assert "batch_size=4" in row["spec"]["train_args"]
    assert row["step_timing_summary"] == {"profile_mode": "trace"}
    assert row["missing_artifacts"] == []
    stamp, name = row["run_id"].split("__")
    assert (len(stamp), stamp[8], stamp[-1], name) == (16, "T", "Z", "first")


def test_the_failed_row_says_what_is_missing_and_withholds_the_secret(ran):
    folder, rows, _ = ran
    row = rows[1]
    assert row["stderr_tail"][-1] == "login token=[withheld]"
    assert len(row["stderr_tail"]) == 20
    run_dir = folder / "failing" / row["run_id"]
    assert "s3cr3tvalue" not in (run_dir / "stderr.txt").read_text()
    assert (run_dir / "stdout.txt").read_text() == "out\n"
    assert row["step_timing_summary"] == {}
    assert row["missing_artifacts"] == [
        "step_timing_summary.json",
        "deterministic_forward.json",
        "torch_tables/cpu_time_total.txt",
        "torch_traces/trace_step_<N>.json",
    ]


def test_a_success_without_a_summary_says_so(tmp_path):
    rows, status = run_profiles(
        CASES[:1], tmp_path, program=lambda *a: [sys.executable, "-S", "-c", ""]
    )
    assert status == 0
    assert rows[0]["status"] == "success"
    assert "step_timing_summary.json" in rows[0]["missing_artifacts"]


def test_the_command_trains_and_stores_or_uploads_nothing(tmp_path):
    command = case_program(CASES[0], tmp_path, "trace")
    assert command[:3] == [sys.executable, "-m", "torchrl_vla.recipes.profile_case"]
    assert command[3:] == [
        *("--case", "first", "--output-dir", str(tmp_path / "train")),
        *("--profile-mode", "trace"),
        *("--profile-output-dir", str(tmp_path / "profiling")),
    ]
    assert not [word for word in command if "push" in word or "checkpoint" in word]


def test_a_real_case_runs_in_a_process_and_leaves_no_checkpoint(tmp_path):
    (case,) = find_cases(["tiny-regression"])
    rows, status = run_profiles([case], tmp_path)
    assert status == 0, rows[0]["stderr_tail"]
    (row,) = rows
    assert row["missing_artifacts"] == []
    summary = row["step_timing_summary"]
    for name in ("total_update_s", "forward_s", "backward_s", "optimizer_s"):
        assert summary[name]["count"] == 9
    assert row["deterministic_forward"]["reference_batch_size"] == 4
    run_dir = tmp_path / "tiny-regression" / row["run_id"]
    assert not (run_dir / "train").exists()
    assert [p for p in run_dir.rglob("*") if p.suffix in {".pt", ".safetensors"}] == []


def test_what_cannot_be_installed_blocks_no_other_case(tmp_path):
    def install(case):
        if case.name != "last":
            raise subprocess.CalledProcessError(1, ["pip", "install", case.name])

    tolerated = ProfileCase("needs-a-compiler", "tiny", may_be_missing=True)
    with pytest.warns(UserWarning, match="needs-a-compiler: skipped: Command"):
        rows, status = run_profiles(
            [tolerated, CASES[2]], tmp_path, prepare=install, program=fake_program
        )
    assert ([row["policy"] for row in rows], status) == (["last"], 0)
    with pytest.warns(UserWarning, match="first: skipped"):
        rows, status = run_profiles(
            [CASES[0], CASES[2]], tmp_path, prepare=install, program=fake_program
        )
    assert ([row["policy"] for row in rows], status) == (["last"], 1)


def test_a_missing_package_names_the_extra():
    case = ProfileCase("x", "x", extra="lerobot", packages=("no_such_package",))
    with pytest.raises(
        MissingExtraError, match=r"pip install 'torchrl-vla\[lerobot\]'"
    ):
        check_case_packages(case)


def test_off_is_no_mode_of_an_orchestrator(tmp_path):
    with pytest.raises(SettingsError, match="got 'off'"):
        run_profiles(CASES, tmp_path, "off")


class FakeHub:
    def __init__(self, url=None, error=None):
        self.commits, self.url, self.error = [], url, error

    def create_commit(self, **options):
        self.commits.append(options)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(pr_url=self.url)


def publish(tmp_path, hub, **options):
    pytest.importorskip("huggingface_hub")
    publisher = HubPublisher("me/history", api=hub, **options)
    return run_profiles(
        CASES[:1],
        tmp_path,
        provenance=PROVENANCE,
        publisher=publisher,
        program=fake_program,
    )


def test_a_run_is_one_commit_to_a_dataset_that_is_not_created(tmp_path):
    hub = FakeHub()
    (row,), status = publish(tmp_path, hub)
    (commit,) = hub.commits
    assert (commit["repo_id"], commit["repo_type"]) == ("me/history", "dataset")
    assert (commit["revision"], commit["create_pr"]) == ("main", False)
    places = [operation.path_in_repo for operation in commit["operations"]]
    root = f"artifacts/first/{row['run_id']}"
    row_path = f"rows/first/{row['run_id']}.json"
    assert sorted(places) == sorted(
        [
            row_path,
            f"{root}/stdout.txt",
            f"{root}/stderr.txt",
            f"{root}/profiling/step_timing_summary.json",
            f"{root}/profiling/deterministic_forward.json",
            f"{root}/profiling/torch_tables/cpu_time_total.txt",
            f"{root}/profiling/torch_traces/trace_step_9.json",
        ]
    )
    assert row["publish_status"] == "success"
    assert sorted(row["uploaded_paths"]) == sorted(places)
    assert row["publish_pr_number"] is None
    assert row["artifact_urls"]["row"].endswith(f"/me/history/resolve/main/{row_path}")
    assert status == 0


def test_a_pull_request_is_in_the_addresses(tmp_path):
    hub = FakeHub("https://hub/datasets/me/history/discussions/12")
    (row,), _ = publish(tmp_path, hub, as_pull_request=True)
    assert hub.commits[0]["create_pr"] is True
    assert row["publish_pr_number"] == 12
    assert "/resolve/refs/pr/12/rows/" in row["artifact_urls"]["row"]
    tables = row["artifact_urls"]["torch_tables"]
    assert "/resolve/refs/pr/12/" in tables["cpu_time_total.txt"]


def test_a_refused_upload_fails_no_run(tmp_path):
    hub = FakeHub(error=RuntimeError("403 Forbidden for token=hf_abcdefghijkl"))
    (row,), status = publish(tmp_path, hub)
    assert status == 0
    assert row["publish_status"] == "failed"
    assert row["publish_error"] == "RuntimeError: 403 Forbidden for token=[withheld]"
    assert row["status"] == "success"
    run_dir = tmp_path / "first" / row["run_id"]
    written = json.loads((run_dir / "profiling_row.json").read_text())
    assert written["publish_status"] == "failed"
