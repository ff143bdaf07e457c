"""Publication of profiled runs in a dataset repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torchrl_vla._internal.extras import import_extra
from torchrl_vla.profiling.artifact_index import ArtifactIndex, build_artifact_index
from torchrl_vla.profiling.json_files import sorted_json
from torchrl_vla.profiling.profile_options import ProfileMode
from torchrl_vla.profiling.secrets import withhold_secrets

Event = Literal["schedule", "pull_request", "manual"]


class HubApi(Protocol):
    """The call of ``huggingface_hub.HfApi`` that is used."""

    def create_commit(self, **options: Any) -> Any:
        """Commit files; the answer has ``pr_url`` where a pull request was opened."""


@dataclass(frozen=True)
class HubPublisher:
    """Commit a run's files and its row to an existing dataset repository.

    The repository is not created. What goes wrong is noted in the row and ends no run.

    Args:
        repo_id: ``organization/name``.
        as_pull_request: True = open a pull request there instead of committing.
        api: None = that of ``huggingface_hub`` (extra ``datasets``), with the token
            that it finds.
    """

    repo_id: str
    as_pull_request: bool = False
    api: HubApi | None = None

    def index(self, run_dir: Path, policy_name: str, run_id: str) -> ArtifactIndex:
        """Return the index of a run in this repository."""
        return build_artifact_index(self.repo_id, run_dir, policy_name, run_id)

    def publish(
        self, row: dict[str, Any], index: ArtifactIndex, run_dir: Path
    ) -> dict[str, Any]:
        """Commit a run; return what the row says about it.

        Args:
            row: of the run.
            index: of its files.
            run_dir: its folder.

        Returns:
            ``publish_status``; after a success also ``uploaded_paths``,
            ``publish_pr_url``, ``publish_pr_number`` and the addresses; after a failure
            ``publish_error``.
        """
        try:
            info = self._commit(row, index)
        except Exception as error:
            text = withhold_secrets(f"{type(error).__name__}: {error}")
            return {"publish_status": "failed", "publish_error": text}
        url = info.pr_url
        number = parse_discussion_number(url)
        revision = "main" if number is None else f"refs/pr/{number}"
        found = build_artifact_index(
            self.repo_id, run_dir, row["policy"], row["run_id"], revision
        )
        return {
            "publish_status": "success",
            "uploaded_paths": [*index.targets.values(), index.row_path],
            "publish_pr_url": url,
            "publish_pr_number": number,
            "artifact_urls": dict(found.urls),
        }

    def _commit(self, row: dict[str, Any], index: ArtifactIndex) -> Any:
        hub = import_extra("huggingface_hub", "datasets", "HubPublisher")
        api = hub.HfApi() if self.api is None else self.api
        add = hub.CommitOperationAdd
        operations = [
            add(path_in_repo=name, path_or_fileobj=str(path))
            for path, name in index.targets.items()
        ]
        content = sorted_json(row).encode()
        operations.append(add(path_in_repo=index.row_path, path_or_fileobj=content))
        return api.create_commit(
            repo_id=self.repo_id,
            repo_type="dataset",
            operations=operations,
            commit_message=f"Profile {row['policy']} {row['run_id']}",
            revision="main",
            create_pr=self.as_pull_request,
        )


def parse_discussion_number(url: str | None) -> int | None:
    """Return the number at the end of a discussion's address, None without one.

    Examples:
        >>> parse_discussion_number("https://hub/datasets/a/b/discussions/12")
        12
    """
    found = re.search(r"/discussions/(\d+)", url or "")
    return None if found is None else int(found[1])


def full_repo_id(name: str, organization: str) -> str:
    """Return ``organization/name``, or the name as it is if it has a slash.

    Examples:
        >>> full_repo_id("history", "lerobot"), full_repo_id("me/history", "lerobot")
        ('lerobot/history', 'me/history')
    """
    return name if "/" in name else f"{organization}/{name}"


def plan_publication(
    event: Event, *, is_asked: bool = False, has_token: bool = False
) -> tuple[ProfileMode, bool]:
    """Return the mode of a run of continuous integration, and whether it publishes.

    Pull requests are profiled in ``summary`` and not published. A scheduled run traces
    and publishes; one that was started by hand publishes if it was asked to. Without a
    token nothing is published.

    Examples:
        >>> plan_publication("schedule", has_token=True)
        ('trace', True)
    """
    if event == "pull_request":
        return "summary", False
    return "trace", has_token and (event == "schedule" or is_asked)
