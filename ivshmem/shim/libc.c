/* SPDX-License-Identifier: Apache-2.0 */
#include "libc.h"

#include <dlfcn.h>

struct libc_table libc_;

#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* siginterrupt */
void libc_resolve(void)
{
#define RESOLVE(result, name, arguments) *(void **)&libc_.name = dlsym(RTLD_NEXT, #name);
	LIBC_FUNCTIONS(RESOLVE)
#undef RESOLVE
	__atomic_store_n(&libc_.ready, true, __ATOMIC_RELEASE);
}
