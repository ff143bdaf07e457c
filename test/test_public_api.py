from __future__ import annotations

import difflib
import re
from pathlib import Path

import public_api

import torchrl_vla

ROOT = Path(__file__).parent.parent


def test_public_names_and_signatures_are_those_of_the_checked_in_list():
    known = public_api.FILE.read_text().splitlines()
    found = public_api.public_lines()
    changes = list(difflib.unified_diff(known, found, "public_api.txt", "code", n=0))
    assert found == known, "\n".join([*changes, "Intended? Run `make api`."])


def test_changelog_citation_and_package_have_the_same_version():
    version = torchrl_vla.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    date = re.search(rf"^## \[{re.escape(version)}\] - (\S+)$", changelog, re.M)
    citation = (ROOT / "CITATION.cff").read_text()
    assert date is not None
    assert f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {date[1]}\n" in citation
