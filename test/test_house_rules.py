"""The written rules of the code base, read from its syntax trees."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "torchrl_vla"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

#: Signatures that a public document fixes.
FIXED = {"TinyVLA", "MultiStepActorWrapper", "LeRobotPolicyWrapper"}
RIDDLES = {"What", "How", "Which", "Where", "Who", "Whether", "When", "Why"}
OLD_WORDS = (
    r"[Tt]he surprise|[Gg]one on with|begun anew|[Cc]omes? to rest|[Ss]ee there|"
    r"\b(draw_on_demand|will_decide|make_stochastic|load_actor|chunk_choice)\b"
)


def where(path: Path, node: ast.AST | None = None) -> str:
    line = "" if node is None else f":{node.lineno}"
    return f"{path.relative_to(PACKAGE.parent)}{line}"


def functions():
    for path, tree in TREES.items():
        for owner in ast.walk(tree):
            if isinstance(owner, ast.ClassDef | ast.Module):
                for node in owner.body:
                    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                        yield path, owner, node


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    names = names[1:] if names[:1] in (["self"], ["cls"]) else names
    return names + [a.arg for a in node.args.kwonlyargs]


def test_module_docstrings_are_noun_phrases():
    riddles = {
        where(path): doc.split()[0]
        for path, tree in TREES.items()
        if (doc := ast.get_docstring(tree)) and doc.split()[0] in RIDDLES
    }
    assert riddles == {}
    assert [where(p) for p, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_constructors_take_at_most_eight_parameters():
    long = {
        f"{where(path)} {owner.name}": len(parameters(node))
        for path, owner, node in functions()
        if node.name == "__init__"
        and owner.name not in FIXED
        and len(parameters(node)) > 8
    }
    assert long == {}


@pytest.mark.parametrize(("folder", "limit"), [("policies", 15), ("execution", 12)])
def test_keys_travel_in_records_and_not_one_by_one(folder, limit):
    keys = [
        f"{where(path, node)} {name}"
        for path, _, node in functions()
        if path.is_relative_to(PACKAGE / folder)
        for name in parameters(node)
        if name.endswith("_key")
    ]
    assert len(keys) <= limit, keys


def test_no_two_files_have_the_same_name():
    names = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert {name: n for name, n in names.items() if n > 1} == {}


#: Lines of the package: a ratchet. It rose with vision-language policies, encoders,
#: LIBERO, evaluation at scale, profiling and several ranks; otherwise it may only fall.
MOST_LINES = 86038


def test_no_file_has_more_than_400_lines_and_the_package_does_not_grow():
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert {where(path): n for path, n in lengths.items() if n > 400} == {}
    assert sum(lengths.values()) <= MOST_LINES


def test_words_of_the_old_dialect_are_gone():
    found = [
        f"{where(path)}: {match[0]}"
        for path in FILES
        for match in re.finditer(OLD_WORDS, path.read_text())
    ]
    assert found == []


def test_any_stays_rare():
    lines = names = 0
    for path, tree in TREES.items():
        if not path.is_relative_to(PACKAGE / "policies" / "lerobot"):
            lines += len(path.read_text().splitlines())
            names += sum(
                isinstance(node, ast.Name) and node.id == "Any"
                for node in ast.walk(tree)
            )
    assert 1000 * names / lines < 4


def test_no_layer_above_the_environments_names_one_of_their_classes():
    """Adding a robot or a simulator touches ``envs/`` only."""
    classes = {
        node.name
        for path, tree in TREES.items()
        if path.is_relative_to(PACKAGE / "envs")
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    above = ("spaces", "evaluation", "recipes", "cli")
    named = {
        f"{where(path, node)}: {node.id}"
        for folder in above
        for path, tree in TREES.items()
        if path.is_relative_to(PACKAGE / folder)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id in classes
    }
    assert named == set()
