"""Checked-in fingerprints: a commit that changes a number shows it as a diff."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from reference_fingerprints import (
    CASES,
    FOLDER,
    environment_name,
    make_fingerprints,
)

from torchrl_vla.profiling.run_environment import describe_run


@pytest.fixture(scope="module")
def found():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield environment_name(), make_fingerprints()
    finally:
        torch.set_num_threads(threads)


def test_a_commit_changes_no_number_unless_it_says_so(found):
    name, made = found
    path = FOLDER / f"{name}.json"
    if not path.exists():
        known = sorted(file.stem for file in FOLDER.glob("*.json"))
        pytest.skip(f"no fingerprints of {name}, only of {known}: make fingerprints")
    expected = json.loads(path.read_text())
    operators, outputs = (
        {
            case: (expected["cases"].get(case, {}).get(kind), hashes[kind])
            for case, hashes in made.items()
            if expected["cases"].get(case, {}).get(kind) != hashes[kind]
        }
        for kind in ("operator_fingerprint", "output_fingerprint")
    )
    here = describe_run()["machine"]
    if outputs and expected["machine"] != here:
        pytest.skip(f"outputs are those of {expected['machine']}, this is {here}")
    assert not outputs, (
        f"numbers changed: {outputs}. Intended? Run `make fingerprints`."
    )
    assert not operators, f"operators changed: {operators}. Run `make fingerprints`."


def test_every_tiny_head_has_a_forward_and_a_loss_that_differ(found):
    _, made = found
    assert set(made) == {
        f"{case} {part}" for case in CASES for part in ("forward", "loss")
    }
    # A Gaussian's mean is cloned as a regression is: with the same weights, one loss.
    assert (
        made["tiny-gaussian loss"]["output_fingerprint"]
        == (made["tiny-regression loss"]["output_fingerprint"])
    )
    assert len({hashes["output_fingerprint"] for hashes in made.values()}) == 9


def test_another_process_finds_the_same_fingerprints(found):
    _, made = found
    program = (
        "import json, sys; sys.path[:0] = sys.argv[1:]\n"
        "import torch; torch.set_num_threads(1)\n"
        "from reference_fingerprints import make_fingerprints\n"
        "print(json.dumps(make_fingerprints()))\n"
    )
    support = [path for path in sys.path if path.endswith("support")]
    command = [sys.executable, "-c", program, *support]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == made
