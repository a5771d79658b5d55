/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The interface of /dev/hyperheapN: one heap, as a guest's processes see it.
 *
 * An open file is what rights hang on. The agent (CAP_SYS_ADMIN) opens the device, grants ranges of the heap to
 * that open file, binds a vector to it, and passes the descriptor to a process, which can then map the granted
 * ranges and ring, and nothing else. Everything an open file has ends when its last descriptor and its last
 * mapping are gone.
 *
 * After the device was unplugged every ioctl fails with ENODEV, poll() reports EPOLLHUP, each bound eventfd has
 * been signalled once, and existing mappings show one private page of zeros over and over instead of the heap:
 * nobody gets SIGBUS, and whoever validates what it reads from a heap notices.
 */
#ifndef HYPERHEAP_IOCTL_H
#define HYPERHEAP_IOCTL_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* hh_info.flags: mmap() at HH_MMAP_DOORBELL works. */
#define HH_INFO_DOORBELL_PAGE (1U << 0)

/**
 * struct hh_info - what the device is
 * @heap_size: bytes; a power of two
 * @peer_id: this guest's id among the heap's peers, as HH_IOC_RING and the doorbell register take it
 * @vectors: how many vectors can be bound; 0 is the agent's by convention
 * @flags: HH_INFO_*
 * @reserved: 0
 */
struct hh_info {
	__u64 heap_size;
	__u32 peer_id;
	__u32 vectors;
	__u32 flags;
	__u32 reserved;
};

/**
 * struct hh_range - a range of the heap
 * @offset: bytes from the heap's start; a multiple of the page size
 * @length: bytes; a multiple of the page size, not 0
 */
struct hh_range {
	__u64 offset;
	__u64 length;
};

/* hh_bind.vector: any vector from 1 on that nobody has. */
#define HH_VECTOR_ANY 0xffffffffU

/**
 * struct hh_bind - an eventfd for an interrupt vector
 * @eventfd: in: descriptor of the eventfd to signal
 * @vector: in: HH_VECTOR_ANY or the vector wanted; out: the vector
 */
struct hh_bind {
	__s32 eventfd;
	__u32 vector;
};

/**
 * struct hh_ring_request - whom to interrupt
 * @peer: peer id, at most 0xffff
 * @vector: below hh_info.vectors
 */
struct hh_ring_request {
	__u32 peer;
	__u32 vector;
};

#define HH_IOC_MAGIC 0xbe

/*
 * HH_IOC_INFO: any open file.
 *	EAGAIN	the doorbell server has not given this guest its peer id yet
 */
#define HH_IOC_INFO _IOR(HH_IOC_MAGIC, 0x00, struct hh_info)

/*
 * HH_IOC_GRANT, HH_IOC_REVOKE: add a range to what this open file may map, or take it away. CAP_SYS_ADMIN.
 * Granted ranges that touch or overlap are one range. Revoking more than was granted is fine; mappings that
 * exist stay until they are unmapped.
 *	EPERM	the caller has no CAP_SYS_ADMIN
 *	EINVAL	unaligned, empty, or outside the heap
 */
#define HH_IOC_GRANT _IOW(HH_IOC_MAGIC, 0x01, struct hh_range)
#define HH_IOC_REVOKE _IOW(HH_IOC_MAGIC, 0x02, struct hh_range)

/*
 * HH_IOC_BIND: signal an eventfd at each interrupt of a vector, until this open file ends. CAP_SYS_ADMIN.
 * A vector that is asked for by number may be shared: each eventfd bound to it is signalled.
 *	EPERM	the caller has no CAP_SYS_ADMIN
 *	EINVAL	no such vector, or the descriptor is not an eventfd
 *	EBADF	no such descriptor
 *	ENOSPC	HH_VECTOR_ANY, and every vector is taken
 */
#define HH_IOC_BIND _IOWR(HH_IOC_MAGIC, 0x03, struct hh_bind)

/*
 * HH_IOC_RING: interrupt a peer. Needs a granted range or CAP_SYS_ADMIN. A peer that is not there is no error:
 * nobody on this side can know.
 *	EPERM	nothing is granted and the caller has no CAP_SYS_ADMIN
 *	EINVAL	peer or vector out of range
 */
#define HH_IOC_RING _IOW(HH_IOC_MAGIC, 0x04, struct hh_ring_request)

/*
 * mmap() takes MAP_SHARED only, with PROT_READ and PROT_WRITE at will, never PROT_EXEC:
 *
 *   at an offset in the heap	write-back memory. The range must lie in one granted range. A caller with
 *				CAP_SYS_ADMIN may map everything through a file that was never granted anything.
 *   at HH_MMAP_DOORBELL	one page, uncached: the device's registers. Storing (peer << 16 | vector) as one
 *				32-bit word at HH_DOORBELL_REGISTER rings without a system call. Needs what
 *				HH_IOC_RING needs.
 *
 *	EACCES	not granted
 *	EINVAL	private, executable, or outside the heap
 *	EOPNOTSUPP the registers share their page with something else: use HH_IOC_RING
 */
#define HH_MMAP_DOORBELL (1ULL << 56)
#define HH_DOORBELL_REGISTER 0x0c

#endif /* HYPERHEAP_IOCTL_H */
