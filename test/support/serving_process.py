"""A server of the echo policy as a program: ``python serving_process.py PORT SHIFT_S``.

Its wall clock is ahead by ``SHIFT_S`` seconds. It prints its address and serves until
it is ended.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

if __name__ == "__main__":
    shift_s, true_time, true_time_ns = float(sys.argv[2]), time.time, time.time_ns
    time.time = lambda: true_time() + shift_s
    time.time_ns = lambda: true_time_ns() + int(shift_s * 1e9)

from served_policies import Echo

from torchrl_vla.serving import PolicyServer, ServerOptions


def start_process(port: int = 0, shift_s: float = 0.0) -> tuple[subprocess.Popen, str]:
    """Return a server in a process of its own, and its address."""
    command = [sys.executable, str(Path(__file__)), str(port), str(shift_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address.startswith("ws://"), address
    return process, address


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


if __name__ == "__main__":
    options = ServerOptions(port=int(sys.argv[1]))
    print(PolicyServer(Echo(), options=options).start().address, flush=True)
    threading.Event().wait()
