from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / ".github" / "workflows" / "profiling.yml"


@pytest.fixture(scope="module")
def workflow():
    return pytest.importorskip("yaml").safe_load(FILE.read_text())


def test_it_runs_weekly_for_pull_requests_that_touch_training_and_by_hand(workflow):
    triggers = workflow[True]  # YAML reads `on` as true
    assert triggers["schedule"] == [{"cron": "0 0 * * 0"}]
    assert set(triggers["workflow_dispatch"]["inputs"]) == {
        *("cases", "publish_results", "results_repo")
    }
    for path in triggers["pull_request"]["paths"]:
        assert list(ROOT.glob(path)), path
    assert workflow["concurrency"]["cancel-in-progress"] is True


def test_pull_requests_are_summaries_that_have_no_token(workflow):
    (job,) = workflow["jobs"].values()
    variables = job["env"]
    assert "'pull_request' && 'summary' || 'trace'" in variables["MODE"]
    assert "!= 'pull_request'" in variables["HF_TOKEN"]
    assert "!= 'pull_request'" in variables["PUBLISH"]
    scripts = [step["run"] for step in job["steps"] if "run" in step]
    assert not [script for script in scripts if "${{" in script]
    assert job["steps"][-1]["if"] == "always()"
