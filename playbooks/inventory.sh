#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A lab as Ansible's inventory: LAB_TOPOLOGY=examples/hello.yaml ansible -i playbooks/inventory.sh all -m ping
# LAB names the command `lab` where it is neither in PATH nor in the .venv of this source tree.
lab=${LAB:-$(command -v lab || echo "$(dirname "$0")/../.venv/bin/lab")}
exec "$lab" inventory "$@"
