/* SPDX-License-Identifier: Apache-2.0 */
/* What kind of machine this is, where it matters for speed. */
#ifndef HYPERHEAP_MACHINE_H
#define HYPERHEAP_MACHINE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* Whether the instructions are emulated by QEMU: the hypervisor's signature, found as Linux finds it
 * (arch/x86/include/asm/processor.h, hypervisor_cpuid_base). */
static inline bool hh_is_tcg(void)
{
#if defined(__x86_64__)
	uint32_t a, b, c, d, signature[3];

	__cpuid(1, a, b, c, d);
	if (!(c & (1U << 31)))
		return false;
	__cpuid(0x40000000, a, signature[0], signature[1], signature[2]);
	return !memcmp(signature, "TCGTCGTCGTCG", sizeof(signature));
#else
	return false;
#endif
}

#endif
