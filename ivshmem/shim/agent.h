/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim's side of the agent protocol (hyperheap/agent_protocol.h), and the region of ends. Nothing here is done before
 * the process has its first TCP socket, and no call waits for the agent except agent_attach() and agent_bell().
 */
#ifndef SHIM_AGENT_H
#define SHIM_AGENT_H

#include "fds.h"

#include <signal.h>

#include <hyperheap/atomics.h>
#include <hyperheap/ends.h>

#define AGENT_BELLS 8
#define UPGRADE_CALLS 4
#define UPGRADE_BYTES 32768
#define UPGRADE_MIN_BYTES 512 /* greetings stay on TCP: sandboxes and privileges are dropped after them */

extern struct hh_region *agent_region_;

/* The region of ends, or NULL while there is no agent. */
static inline struct hh_region *agent_region(void)
{
	return hh_load_acquire(&agent_region_);
}

/* Maps the region if an agent has made one; at most one try a second. */
void agent_look(void);
/* The connection has carried enough: tell the agent. */
void agent_announce(int fd, struct fd *entry);
void agent_listen(int fd, struct fd *entry);
/* Reads what the agent has sent, if it has; never waits. */
void agent_poll(void);
/* Asks for a grant of an existing end; true if the channel is there now. Waits up to 2 s. */
bool agent_attach(uint64_t cookie);
/* The eventfd of a slot of this guest (private descriptor), or -1. Waits up to 2 s. */
int agent_bell(uint32_t slot);
/* The agent has said that this connection stays on TCP. */
bool agent_refused(uint64_t cookie);
/* The bells on which this process sleeps; how many were written to `bells`. The first is the process's own, which rings
 * when the set changes, so that no sleeper misses a bell that came while it slept. */
int agent_bells(int bells[AGENT_BELLS]);
/* Changes whenever the set of bells does, and in a forked child. */
uint32_t agent_bells_serial(void);
/* Wakes the sleepers of this process. */
void agent_kick(void);

/* The process has entered a seccomp sandbox, which knows the calls that the program makes and not ours: nothing is announced
 * any more. */
extern bool agent_sandboxed_;

/* Threads that sleep in the kernel on sets with streams, deaf to the bells because there was no agent when they began.
 * While there are any, nothing is announced. */
extern uint32_t agent_deaf_;
#define DEAF(call)                                                                                                             \
	({                                                                                                                     \
		int result_;                                                                                                   \
		hh_fetch_add(&agent_deaf_, 1);                                                                                 \
		result_ = (call);                                                                                              \
		hh_fetch_sub(&agent_deaf_, 1);                                                                                 \
		result_;                                                                                                       \
	})

/* No wait needs to hear bells: there is no agent, or this thread is the only one and has not told it of anything. */
bool agent_is_quiet(void);

/* One lock for all slow paths of the process; signals are blocked while it is held, so a handler cannot meet it. */
void process_lock(sigset_t *saved);
void process_unlock(const sigset_t *saved);

#endif
