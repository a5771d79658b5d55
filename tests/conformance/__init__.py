# SPDX-License-Identifier: Apache-2.0
"""Other people's tests and programs on this host's loopback, with the shim and without, in the same run.

`make conformance`, or ``PYTHONPATH=tests python -m conformance`` in the tree; docs/conformance.md has more.
"""
