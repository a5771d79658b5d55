"""The daemon in each guest, and the wire format between it and the registry. Standard library only."""
