/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every atomic access of hyperheap goes through these names, so that a search for
 * them finds all of it. An acquire names its release partner in a comment at both
 * ends (R1 <-> A1); the pairs are listed in heap.h.
 *
 * All accesses to memory that another guest can write use these: the compiler may
 * then neither tear, repeat nor invent a load, which is what "snapshot once, check,
 * use the copy" stands on.
 */
#ifndef HYPERHEAP_ATOMICS_H
#define HYPERHEAP_ATOMICS_H

#define hh_load(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define hh_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define hh_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define hh_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define hh_exchange(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
#define hh_fetch_or(p, v) __atomic_fetch_or((p), (v), __ATOMIC_ACQ_REL)
#define hh_fetch_and(p, v) __atomic_fetch_and((p), (v), __ATOMIC_ACQ_REL)
#define hh_fetch_add(p, v) __atomic_fetch_add((p), (v), __ATOMIC_ACQ_REL)
#define hh_fetch_sub(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_ACQ_REL)

/* Full barrier: between "I sleep" and "look again", and between "published" and "does anybody sleep?". */
#define hh_full_barrier() __atomic_thread_fence(__ATOMIC_SEQ_CST)

#if defined(__x86_64__) || defined(__i386__)
#define hh_cpu_relax() __builtin_ia32_pause()
#else
#define hh_cpu_relax() __asm__ __volatile__("" ::: "memory")
#endif

#endif
