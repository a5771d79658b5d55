#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write files: write.py DIRECTORY reads one JSON object of file names and texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Make the directory if need be; files that are there are overwritten."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in json.load(sys.stdin).items():
        (directory / Path(name).name).write_text(text + ("" if text.endswith("\n") else "\n"))


if __name__ == "__main__":
    main()
