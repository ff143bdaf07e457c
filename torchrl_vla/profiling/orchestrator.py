"""Profiles of several cases, each in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla._internal.json_source import read_json
from torchrl_vla.errors import MissingExtraError, SettingsError
from torchrl_vla.profiling.artifact_index import ROW_FILE, build_artifact_index
from torchrl_vla.profiling.forward_fingerprint import FINGERPRINT_FILE
from torchrl_vla.profiling.hub_publication import HubPublisher
from torchrl_vla.profiling.json_files import sorted_json
from torchrl_vla.profiling.operator_recording import TABLES_FOLDER, TRACES_FOLDER
from torchrl_vla.profiling.profile_cases import ProfileCase
from torchrl_vla.profiling.profile_options import ProfileMode, ProfileOptions
from torchrl_vla.profiling.secrets import withhold_secrets
from torchrl_vla.profiling.step_timings import SUMMARY_FILE

SCHEMA_VERSION = 1
_TAIL = 20
_UNPUBLISHED = "local/profiles"

#: Makes the command of a case from the case, the folder of the run and the mode.
Program = Callable[[ProfileCase, Path, ProfileMode], Sequence[str]]


@dataclass(frozen=True)
class RunProvenance:
    """Where the code of a run comes from.

    Args:
        git_commit: None = that of the current directory, if it is a repository.
        git_ref: branch or reference.
        pr_number: of the pull request.
    """

    git_commit: str | None = None
    git_ref: str | None = None
    pr_number: int | None = None

    def as_fields(self) -> dict[str, str | int | None]:
        """Return the fields of a row."""
        return {
            "git_commit": self.git_commit or current_commit(),
            "git_ref": self.git_ref or None,
            "pr_number": self.pr_number,
        }


def current_commit() -> str | None:
    """Return the commit of the current directory, None outside of a repository."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def case_program(case: ProfileCase, run_dir: Path, mode: ProfileMode) -> list[str]:
    """Return the command that trains a case: it stores and publishes no policy."""
    return [
        *(sys.executable, "-m", "torchrl_vla.recipes.profile_case"),
        *("--case", case.name, "--output-dir", str(run_dir / "train")),
        *("--profile-mode", mode),
        *("--profile-output-dir", str(run_dir / "profiling")),
    ]


def check_case_packages(case: ProfileCase) -> None:
    """Refuse a case whose packages are not installed.

    Raises:
        MissingExtraError: names them and the extra that installs them.
    """
    missing = [name for name in case.packages if not importlib.util.find_spec(name)]
    if missing:
        raise MissingExtraError(
            f"profile {case.name}: expected the packages {list(case.packages)} to be "
            f"installed, got no {missing}. Install them with: pip install "
            f"'torchrl-vla[{case.extra}]'"
        )


def is_installed(case: ProfileCase) -> bool:
    """Return whether the packages of a case are installed."""
    return all(importlib.util.find_spec(name) for name in case.packages)


def run_profiles(
    cases: Iterable[ProfileCase],
    folder: Path | str,
    mode: ProfileMode = "trace",
    *,
    provenance: RunProvenance | None = None,
    publisher: HubPublisher | None = None,
    prepare: Callable[[ProfileCase], None] = check_case_packages,
    program: Program = case_program,
) -> tuple[list[dict[str, Any]], int]:
    """Profile cases one after the other; one that fails does not stop the others.

    Each writes ``<folder>/<case>/<run id>/`` with ``stdout.txt``, ``stderr.txt``,
    ``profiling/`` and ``profiling_row.json``.

    Args:
        cases: see ``find_cases``.
        folder: receives a folder per case.
        mode: ``"summary"`` or ``"trace"``, or ``"timing"`` without a fingerprint.

    Keyword Args:
        provenance: commit, branch and pull request.
        publisher: uploads each run; None = nothing is uploaded.
        prepare: called with each case before it runs, e.g. to install its packages; an
            ``OSError``, ``ImportError`` or ``subprocess.CalledProcessError`` skips the
            case.
        program: makes the command of a case.

    Returns:
        The rows, and the exit status: 1 if a training failed, or a case without
        ``may_be_missing`` could not be prepared. A failed upload changes nothing.

    Raises:
        SettingsError: the mode is ``"off"`` or none.
    """
    if ProfileOptions(mode).profile_mode == "off":
        raise SettingsError(
            "run_profiles: expected a mode of ('timing', 'summary', 'trace'), got "
            "'off'. Pass one of them."
        )
    fields = (provenance or RunProvenance()).as_fields()
    rows, status = [], 0
    for case in cases:
        try:
            prepare(case)
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            text = withhold_secrets(str(error))
            warnings.warn(f"profile {case.name}: skipped: {text}", stacklevel=2)
            status = status if case.may_be_missing else 1
            continue
        started = datetime.now(timezone.utc)
        run_id = f"{started:%Y%m%dT%H%M%SZ}__{case.name.replace(':', '-')}"
        run_dir = Path(folder) / case.name.replace(":", "-") / run_id
        row = {
            "schema_version": SCHEMA_VERSION,
            "created_at": started.isoformat(),
            "run_id": run_id,
            "policy": case.name,
            "profile_mode": mode,
            **fields,
            **_run(program(case, run_dir, mode), run_dir),
            "spec": case.spec(),
            **_read_profile(run_dir / "profiling", mode),
        }
        status = status if row["status"] == "success" else 1
        rows.append(_finish(row, run_dir, publisher))
    return rows, status


def _run(command: Sequence[str], run_dir: Path) -> dict[str, Any]:
    """Run a training; return what its process says."""
    (run_dir / "profiling").mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    # They are published, too.
    out, err = withhold_secrets(done.stdout), withhold_secrets(done.stderr)
    write_text(run_dir / "stdout.txt", out)
    write_text(run_dir / "stderr.txt", err)
    return {
        "status": "success" if done.returncode == 0 else "failed",
        "return_code": done.returncode,
        "wall_time_s": seconds,
        "stderr_tail": err.splitlines()[-_TAIL:],
    }


def _read_profile(folder: Path, mode: ProfileMode) -> dict[str, Any]:
    """Return the summaries of a profile, and what it should have and has not."""
    expected = [SUMMARY_FILE]
    if mode != "timing":
        expected += [FINGERPRINT_FILE, f"{TABLES_FOLDER}/cpu_time_total.txt"]
    missing = [name for name in expected if not (folder / name).exists()]
    if mode == "trace" and not any(folder.glob(f"{TRACES_FOLDER}/*.json")):
        missing.append(f"{TRACES_FOLDER}/trace_step_<N>.json")
    return {
        "step_timing_summary": _read_json(folder / SUMMARY_FILE),
        "deterministic_forward": _read_json(folder / FINGERPRINT_FILE),
        "missing_artifacts": missing,
    }


def _read_json(path: Path) -> Any:
    if not path.exists():
        return {}
    return read_json("run_profiles", path, dict[str, Any])


def _finish(
    row: dict[str, Any], run_dir: Path, publisher: HubPublisher | None
) -> dict[str, Any]:
    """Add the index, publish if asked, and write the row."""
    names = (run_dir, run_dir.parent.name, row["run_id"])
    repo = _UNPUBLISHED if publisher is None else publisher.repo_id
    index = build_artifact_index(repo, *names)
    row["artifact_paths"] = dict(index.paths)
    row["artifact_urls"] = {} if publisher is None else dict(index.urls)
    if publisher is not None:
        row |= publisher.publish(row, index, run_dir)
    write_text(run_dir / ROW_FILE, sorted_json(row))
    return row
