"""The Python on the pages of the documentation runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = (
    *("action_tokens.md", "collectors.md", "experience.md", "language.md"),
    *("own_data.md", "own_environment.md", "own_policy.md", "profiling.md"),
    *("robots.md", "serving.md", "vlm.md"),
)
NEEDS = {
    "action_tokens.md": "tokenizers",
    "serving.md": "websockets",
    "vlm.md": "transformers",
}


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.S)
    assert blocks
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": "page"})
