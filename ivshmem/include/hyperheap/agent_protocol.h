/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a shim and its agent say to each other over <run>/agent.sock (SOCK_SEQPACKET, one struct a packet, descriptors as
 * SCM_RIGHTS). Fields that a message does not name are zero. Unknown types are ignored; another version closes the
 * connection. The shim never waits for the agent, except in ATTACH and BELL (at most 2 s, then TCP).
 *
 * shim -> agent
 *   HELLO     pid, program                      first packet of a process
 *   ANNOUNCE  cookie local remote side program  a connection of this process carried enough to be worth a channel.
 *                                               side: 0 it connected, 1 it accepted, 2 not known
 *   LISTEN    cookie local program              a listening socket
 *   ATTACH    cookie                            this process met a socket that has an end (inherited, passed)
 *   BELL      slot                              wants the eventfd of a slot of this guest (memory of one guest only)
 * agent -> shim
 *   WELCOME   slot, agent_epoch     fds: bell     the eventfd on which this process sleeps. The agent keeps one eventfd per
 *                                               slot for as long as it lives, and gives that same one to the next process with
 *                                               the slot (nobody ever drains a bell, so sharing one costs spurious wake-ups only). It
 *                                               binds it to a vector of each heap that the process gets a grant for. The region of ends is
 *                                               found by its path, <run>/ends.
 *   GRANT     cookie end heap offset length slot peer_id side generation   fds: memory
 *                                               map `length` bytes of `memory` at `offset`. heap > 0: `memory` is this process's
 *                                               own open file of /dev/hyperheapN (the same open file for each grant of that heap), the
 *                                               process sleeps on vector `slot` of it and rings peer_id with HH_IOC_RING on it. heap 0: a memfd; offset 0.
 *                                               An answer to ATTACH that cannot be given is a VERDICT.
 *   VERDICT   cookie reason                     this connection stays on TCP for ever
 *   BELL      slot                  fds: eventfd (none: there is no such slot)
 * After a GRANT or VERDICT the agent adds one to region.offers and then writes 1 to the process's bell.
 */
#ifndef HYPERHEAP_AGENT_PROTOCOL_H
#define HYPERHEAP_AGENT_PROTOCOL_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define HH_AGENT_VERSION 1
#define HH_SIDE_CONNECTED 0
#define HH_SIDE_ACCEPTED 1
#define HH_SIDE_UNKNOWN 2

enum hh_message_type {
	HH_HELLO = 1,
	HH_ANNOUNCE = 2,
	HH_LISTEN = 3,
	HH_ATTACH = 4,
	HH_BELL = 5,
	HH_WELCOME = 16,
	HH_GRANT = 17,
	HH_VERDICT = 18,
};

enum hh_reason {
	HH_REASON_NONE = 0,
	HH_REASON_EXTERNAL = 1,  /* the peer is not in a heap with us */
	HH_REASON_POLICY = 2,
	HH_REASON_NO_MEMORY = 3, /* heap full, or no vector left */
	HH_REASON_UNKNOWN = 4,   /* ATTACH: no such end */
	HH_REASON_NO_REGISTRY = 5,
};

struct hh_address {
	uint16_t family; /* AF_INET (first 4 bytes of addr) or AF_INET6; v4-mapped addresses are sent as AF_INET */
	uint16_t port;   /* host byte order */
	uint32_t scope;
	uint8_t addr[16];
};

struct hh_message {
	uint16_t version;
	uint16_t type;
	uint32_t pid;
	uint64_t cookie;
	struct hh_address local;
	struct hh_address remote;
	uint64_t offset;
	uint64_t length;
	uint64_t channel;
	uint32_t end;
	uint32_t heap;
	uint32_t slot;
	uint32_t peer_id;
	uint32_t side;
	uint32_t generation;
	uint32_t agent_epoch;
	uint32_t reason;
	char program[32];
	uint8_t pad[24];
};

static_assert(sizeof(struct hh_address) == 24, "address");
static_assert(offsetof(struct hh_message, cookie) == 8, "cookie");
static_assert(offsetof(struct hh_message, local) == 16, "local");
static_assert(offsetof(struct hh_message, offset) == 64, "offset");
static_assert(offsetof(struct hh_message, end) == 88, "end");
static_assert(offsetof(struct hh_message, program) == 120, "program");
static_assert(sizeof(struct hh_message) == 176, "message");

#endif
