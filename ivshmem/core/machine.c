/* SPDX-License-Identifier: Apache-2.0 */
#include <hyperheap/core.h>
#include <hyperheap/machine.h>

/* Measured, docs/benchmarks.md: a wake-up through the doorbell costs tens of us under KVM and some hundred under TCG. */
#define SPIN_NS 50000U
#define SPIN_TCG_NS 1000000U

uint32_t hh_spin_ns(void)
{
	return hh_is_tcg() ? SPIN_TCG_NS : SPIN_NS;
}
