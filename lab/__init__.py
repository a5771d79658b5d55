"""hyperheap's host side: topologies, guests, networks, heaps, the registry and the `lab` command."""

from __future__ import annotations

__version__ = "0.1.0"
