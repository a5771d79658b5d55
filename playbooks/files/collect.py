#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Print, as one JSON object of file names and texts, what a report about this guest should carry.

collect.py LINES: so many lines of the journal at most. One program, because each start costs a TCG guest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run each command; one that is not there is told in its file."""
    lines = sys.argv[1] if len(sys.argv) > 1 else "5000"
    commands = {
        "journal.log": ["journalctl", "--no-pager", "--output=short-monotonic", f"--lines={lines}"],
        "dmesg.log": ["dmesg"],
        "sockets.txt": ["ss", "--all", "--tcp", "--info", "--extended", "--processes", "--numeric"],
        "addresses.txt": ["ip", "address"],
        "links.json": ["ip", "-json", "-statistics", "link"],
        "processes.txt": ["ps", "-eo", "pid,ppid,pcpu,rss,stat,etime,args"],
        "units.txt": ["systemctl", "--no-pager", "--all", "list-units", "hyperheap*"],
    }
    files = {name: output_of(argv) for name, argv in commands.items()}
    for name in ("meminfo", "interrupts", "stat", "modules", "cmdline", "version"):
        files[f"{name}.txt"] = Path("/proc", name).read_text(errors="replace")
    json.dump(files, sys.stdout)


def output_of(argv: list[str]) -> str:
    """What the command wrote, its complaints included."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{argv[0]}: {error}\n"
    return done.stdout.decode(errors="replace")


if __name__ == "__main__":
    main()
