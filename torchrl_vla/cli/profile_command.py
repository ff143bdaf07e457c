"""``torchrl-vla profile``: profiles of a table of cases, each in its own process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torchrl_vla.cli import library
from torchrl_vla.cli.options import OptionError
from torchrl_vla.profiling.profile_options import ProfileMode


@dataclass(frozen=True)
class Profile:
    """Profile trainings: time per section, operators, memory, numerics fingerprint.

    Exits with 1 if a training fails; a failed upload changes nothing.
    """

    output_dir: Path
    """Folder that receives a folder per case, and the report of all rows in it:
    report.html and report.csv."""
    cases: tuple[str, ...] = ()
    """Cases: tiny-regression, tiny-tokens, tiny-gaussian, tiny-flow, tiny-diffusion,
    act, diffusion, smolvla, pi0 (the last four need the extra `lerobot`), or a function
    of your own as module:function that returns a ProfileCase. Left out, all whose
    packages are installed."""
    profile_mode: ProfileMode = "trace"
    """What is recorded: `timing` sections only, `summary` also operators and the
    fingerprint, `trace` also Chrome traces."""
    publish: bool = False
    """Upload each run to the results repository; needs the extra `datasets`."""
    hub_org: str | None = None
    """Organization of the results repository, if its name has no slash."""
    results_repo: str = "model-profiling-history"
    """Name of an existing dataset repository, or `organization/name`."""
    git_commit: str | None = None
    """Commit to record. Left out, that of the current directory."""
    git_ref: str | None = None
    """Branch or reference to record."""
    pr_number: int | None = None
    """Pull request to record; uploads then open a pull request."""

    def run(self) -> int:
        """Profile, write the report, and print the snapshot."""
        cases = library.find_cases(self.cases or None)
        if not self.cases:
            cases = [case for case in cases if library.is_installed(case)]
        rows, status = library.run_profiles(
            cases,
            self.output_dir,
            self.profile_mode,
            provenance=library.RunProvenance(
                self.git_commit, self.git_ref, self.pr_number
            ),
            publisher=self._publisher(),
        )
        for row in rows:
            if row["status"] == "failed":
                print(f"{row['policy']} failed ({row['return_code']}):")
                print("\n".join(row["stderr_tail"]))
            if row["missing_artifacts"]:
                print(f"{row['policy']} lacks {row['missing_artifacts']}")
            if "publish_error" in row:
                print(f"{row['policy']} was not published: {row['publish_error']}")
        if rows:
            history = library.read_rows(self.output_dir)
            path = library.write_profile_report(
                history, self.output_dir / "report.html"
            )
            print(library.snapshot_table(rows), end="")
            print(f"report in {path}")
        return status

    def _publisher(self) -> library.HubPublisher | None:
        if not self.publish:
            return None
        if self.hub_org is None and "/" not in self.results_repo:
            raise OptionError(
                "--publish: expected an organization for the repository "
                f"{self.results_repo!r}, got none. Pass --hub-org, or --results-repo "
                "organization/name."
            )
        repo = library.full_repo_id(self.results_repo, self.hub_org or "")
        return library.HubPublisher(repo, self.pr_number is not None)
