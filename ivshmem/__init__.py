# SPDX-License-Identifier: Apache-2.0
"""The shared heap: its layout, the C core and what is built from it."""
