/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping and waking (heap.h, B1; B2 is the same with the roles exchanged), on a machine whose stores may be delayed past
 * later loads, as on x86: each side's plain store waits in a buffer until it is flushed.
 *
 * Checked: nobody sleeps for ever. Built with -DNO_BARRIER, the same model must deadlock; so the check can fail.
 */
#define MESSAGES 4

byte head;          /* what everybody sees */
byte buffered_head; /* what the producer has stored */
bool waiting;       /* the consumer's bit in data_waiters */
bool bell;          /* an edge that the consumer's epoll instance holds */

#define flushed (head == buffered_head)

#ifdef NO_BARRIER
#define barrier skip
#else
#define barrier flushed
#endif

active proctype store_buffer()
{
end:	do
	:: atomic { !flushed -> head = buffered_head }
	od
}

active proctype producer()
{
	bool sleeper;

	do
	:: buffered_head < MESSAGES ->
		buffered_head++;  /* hh_tx_write: publish the head */
		barrier;          /* hh_tx_sleepers */
		if
		:: waiting ->
			atomic { sleeper = waiting; waiting = false }
			if
			:: sleeper -> bell = true
			:: else
			fi
		:: else
		fi
	:: else -> break
	od
}

active proctype consumer()
{
	byte tail;

	do
	:: tail == MESSAGES -> break
	:: tail < MESSAGES && head != tail -> tail = head
	:: tail < MESSAGES && head == tail ->
		waiting = true; /* channel_arm: an atomic or, which is a barrier itself */
		if
		:: head != tail          /* look again */
		:: head == tail ->
			bell;            /* ppoll */
			bell = false     /* the edge is taken */
		fi
	od
}
