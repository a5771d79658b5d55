"""SSH keys of a lab: one pair for the host to log in with, one host key per guest. Ed25519, OpenSSH's
formats.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def ensure(private: Path) -> str:
    """The public key ("ssh-ed25519 AAAA...") of the private key in this file, which is made unless it
    exists.
    """
    if not private.exists():
        private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        encoded = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        temporary = private.with_name(f".{private.name}.{os.getpid()}")
        temporary.touch(0o600)
        temporary.write_bytes(encoded)
        temporary.rename(private)
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()


def public_key(private: Path) -> paramiko.PKey:
    """The public half of the private key in this file, for paramiko."""
    return paramiko.Ed25519Key(data=base64.b64decode(ensure(private).split()[1]))
