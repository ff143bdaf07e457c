from __future__ import annotations

import os
import pty
import sys

import pytest

from torchrl_vla.runtime import NoKeys, ScriptedKeys, TerminalKeys, make_keys


def test_without_a_terminal_there_is_a_warning_and_no_event(monkeypatch):
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.warns(UserWarning, match="the run goes on without keys"):
            keys = make_keys()
    assert isinstance(keys, NoKeys)
    assert keys.poll() == []


def test_keys_of_a_terminal_are_events_and_its_mode_comes_back(monkeypatch):
    import termios

    outer, inner = pty.openpty()
    with os.fdopen(inner) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        before = termios.tcgetattr(inner)
        with TerminalKeys() as keys:
            assert keys.poll() == []
            os.write(outer, b"nx")
            assert keys.poll() == ["success"]
        assert termios.tcgetattr(inner) == before
    os.close(outer)


def test_a_terminal_is_needed_for_its_keys(monkeypatch):
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(RuntimeError, match=r"make_keys\(\)"):
            TerminalKeys()


def test_a_script_with_an_unknown_event_is_refused():
    with pytest.raises(ValueError, match=r"got \['jump'\]"):
        ScriptedKeys({0: ["jump"]})
