from __future__ import annotations

import stat

from lab import initrd


def unpack(archive):
    """The entries of a cpio archive, as its specification reads."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, major, minor, name_size = fields[1], fields[6], fields[9], fields[10], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        assert archive[at + 110 + name_size - 1] == 0
        data_at = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[data_at : data_at + size], (major, minor))
        at = (data_at + size + 3) // 4 * 4


def test_archive_gives_back_what_was_packed():
    entries = [
        initrd.Entry("a", stat.S_IFREG | 0o755, b"x"),
        initrd.Entry("longer/name", stat.S_IFREG | 0o644, bytes(range(256)) * 3),
        initrd.Entry("empty", stat.S_IFDIR | 0o755),
    ]
    assert unpack(initrd.pack(entries)) == {each.name: (each.mode, each.data, (0, 0)) for each in entries}


def test_modules_are_loaded_in_their_order_by_name():
    found = unpack(initrd.assemble(b"init", [("z", b"1"), ("a", b"2"), *((f"m{i}", b"") for i in range(20))]))
    modules = [name for name in found if name.startswith("modules/")]
    assert modules == sorted(modules)
    assert [name.split("-", 1)[1] for name in modules[:2]] == ["z.ko", "a.ko"]
    assert found["init"][:2] == (stat.S_IFREG | 0o755, b"init")
    assert found["dev/console"][2] == (5, 1)


def test_each_module_comes_after_what_it_needs():
    order = [module.rpartition("/")[2] for module in initrd.MODULES]
    needs = {
        "virtio": {"virtio_ring"},
        "virtio_pci": {"virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev"},
        "virtio_net": {"virtio", "net_failover"},
        "net_failover": {"failover"},
        "tcp_diag": {"inet_diag"},
    }
    for module, needed in needs.items():
        assert needed <= set(order[: order.index(module)])
