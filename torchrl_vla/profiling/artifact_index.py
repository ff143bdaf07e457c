"""Index of the files of a profiled run, with their places in a results repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchrl_vla.profiling.operator_recording import TABLES_FOLDER, TRACES_FOLDER
from torchrl_vla.profiling.step_timings import SUMMARY_FILE

ROW_FILE = "profiling_row.json"
_HOST = "https://huggingface.co"


@dataclass(frozen=True)
class ArtifactIndex:
    """Files of a run and where they lie once they are published.

    Args:
        paths: names inside the repository: ``row``; ``stdout``, ``stderr`` and
            ``step_timing_summary`` where they exist; ``profiling_files``,
            ``torch_tables`` and ``trace_files``, each by file name.
        urls: addresses, under the same names.
        targets: local file to name inside the repository, without the row.
        row_path: name of the row inside the repository.
    """

    paths: Mapping[str, object]
    urls: Mapping[str, object]
    targets: Mapping[Path, str]
    row_path: str


def build_artifact_index(
    repo_id: str,
    run_dir: Path | str,
    policy_name: str,
    run_id: str,
    revision: str = "main",
) -> ArtifactIndex:
    """List the files of a run; what it wrote to ``train/`` is left out.

    Args:
        repo_id: of the dataset repository, ``organization/name``.
        run_dir: folder of the run.
        policy_name: name of the case.
        run_id: of the run.
        revision: of the repository, e.g. ``refs/pr/3``.
    """
    run_dir = Path(run_dir)
    root = f"artifacts/{policy_name}/{run_id}"
    row_path = f"rows/{policy_name}/{run_id}.json"
    paths: dict[str, object] = {"row": row_path}
    targets: dict[Path, str] = {}
    for name in ("stdout", "stderr"):
        if (file := run_dir / f"{name}.txt").exists():
            paths[name] = targets[file] = f"{root}/{file.name}"
    folder = run_dir / "profiling"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    inside = {path.relative_to(folder).as_posix(): path for path in files}
    targets |= {path: f"{root}/profiling/{name}" for name, path in inside.items()}
    if SUMMARY_FILE in inside:
        paths["step_timing_summary"] = f"{root}/profiling/{SUMMARY_FILE}"
    for kind, below in (
        ("profiling_files", ""),
        ("torch_tables", f"{TABLES_FOLDER}/"),
        ("trace_files", f"{TRACES_FOLDER}/"),
    ):
        paths[kind] = {
            name.removeprefix(below): f"{root}/profiling/{name}"
            for name in inside
            if name.startswith(below)
        }
    urls = {name: _urls(repo_id, revision, path) for name, path in paths.items()}
    return ArtifactIndex(paths, urls, targets, row_path)


def _urls(repo_id: str, revision: str, path: object) -> object:
    match path:
        case dict():
            return {name: _urls(repo_id, revision, p) for name, p in path.items()}
    return f"{_HOST}/datasets/{repo_id}/resolve/{revision}/{path}"
