/* SPDX-License-Identifier: Apache-2.0 */
#include <hyperheap/agent_protocol.h>
#include <hyperheap/core.h>

#include <stdio.h>
#include <string.h>

#define FIELD(type, field) {#type, #field, offsetof(struct type, field)}
#define SIZE(type) {#type, "size", sizeof(struct type)}

static const struct {
	const char *type, *field;
	size_t value;
} fields[] = {
	SIZE(hh_heap_header),
	SIZE(hh_channel),
	SIZE(hh_direction),
	SIZE(hh_region),
	SIZE(hh_end),
	SIZE(hh_offer),
	SIZE(hh_end_stats),
	FIELD(hh_end_stats, offset),
	FIELD(hh_end_stats, peer_id),
	SIZE(hh_address),
	FIELD(hh_address, addr),
	SIZE(hh_message),
	FIELD(hh_message, type),
	FIELD(hh_message, pid),
	FIELD(hh_message, cookie),
	FIELD(hh_message, local),
	FIELD(hh_message, remote),
	FIELD(hh_message, offset),
	FIELD(hh_message, length),
	FIELD(hh_message, channel),
	FIELD(hh_message, end),
	FIELD(hh_message, heap),
	FIELD(hh_message, slot),
	FIELD(hh_message, peer_id),
	FIELD(hh_message, side),
	FIELD(hh_message, generation),
	FIELD(hh_message, agent_epoch),
	FIELD(hh_message, reason),
	FIELD(hh_message, program),
};

const char *hh_layout_json(void)
{
	static char text[4096];
	size_t used = 0;

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		int first = i == 0 || strcmp(fields[i].type, fields[i - 1].type) != 0;

		used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s%s%s\"%s\": %zu", i == 0 ? "{" : first ? "}, " : ", ",
					 first ? "\"" : "", first ? fields[i].type : "", first ? "\": {" : "", fields[i].field,
					 fields[i].value);
	}
	snprintf(text + used, sizeof(text) - used, "}}");
	return text;
}
