"""The verbs of `lab`, one module each. They read options, call a service and print; nothing more."""

from __future__ import annotations
