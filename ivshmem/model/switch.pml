/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Path epochs: one direction that moves between TCP and the ring as often as it likes (heap.h, struct hh_direction;
 * shim/channel.c). A byte is its own number, so order is easy to see. TCP delivers late; the ring at once.
 *
 * Checked: the receiver gets 0, 1, 2, ... , the end-of-file comes after the last byte, and nobody is stuck.
 * -DNO_TURNS lets the sender switch again before the receiver has passed the last switch: then the check must fail.
 * -DBELIEVE_TCP lets the receiver take TCP's end-of-file for the end without a last look at the ring: likewise.
 */
#define BYTES 6
#define RING 2

#define NETWORK 0
#define SHARED 1

/* TCP: sent, delivered to the receiver's kernel, read. Its bytes are tcp[0..]. */
byte tcp[BYTES];
byte tcp_sent, tcp_delivered, tcp_read;
bool fin, fin_delivered;

/* The ring and the shared words of the direction. */
byte ring[RING];
byte head, tail;
byte epochs, epochs_done;
byte epoch_at[16];

#ifdef NO_TURNS
#define may_switch true
#else
#define may_switch (epochs_done == epochs)
#endif

active proctype network()
{
end:	do
	:: atomic { tcp_delivered < tcp_sent -> tcp_delivered++ }
	:: atomic { fin && !fin_delivered && tcp_delivered == tcp_sent -> fin_delivered = true }
	od
}

active proctype sender()
{
	byte next;
	bit path = NETWORK;

	do
	:: next < BYTES && path == NETWORK ->
		atomic { tcp[tcp_sent] = next; tcp_sent++ }
		next++
	:: next < BYTES && path == SHARED && head - tail < RING ->
		ring[head % RING] = next;
		head++; /* R1 */
		next++
	:: may_switch && epochs < 5 ->
		if
		:: path == NETWORK -> epoch_at[epochs] = tcp_sent
		:: else -> epoch_at[epochs] = head
		fi;
		path = 1 - path;
		epochs++ /* R3 */
	:: next == BYTES -> break
	od;
	fin = true
}

active proctype receiver()
{
	byte expected, pending;
	bit path = NETWORK;
	bool done, over;

	do
	:: done -> break
	:: else ->
		if
		:: path == NETWORK ->
			pending = epochs - epochs_done; /* A3 */
			if
			:: pending > 0 && tcp_delivered >= epoch_at[epochs_done] && tcp_read == tcp_delivered ->
				path = SHARED; /* tcp_drained, pass_epoch */
				epochs_done++
			:: else ->
				if
				:: atomic { tcp_read < tcp_delivered ->
					assert(tcp[tcp_read] == expected); tcp_read++ };
					expected++
				:: tcp_read == tcp_delivered && fin_delivered ->
					/* end-of-file: what is pending comes first */
					if
					:: epochs > epochs_done -> path = SHARED; epochs_done++
					:: else -> done = true
					fi
				:: tcp_read == tcp_delivered && !fin_delivered && epochs - epochs_done == pending ->
					/* would block: TCP or an epoch ends it */
					(tcp_read < tcp_delivered || fin_delivered || epochs - epochs_done != pending ||
					 (pending > 0 && tcp_delivered >= epoch_at[epochs_done]))
				:: else
				fi
			fi
		:: path == SHARED ->
			if
			:: head != tail ->
				assert(ring[tail % RING] == expected);
				expected++;
				tail++ /* R2 */
			:: head == tail && epochs > epochs_done ->
				if
				:: head == tail -> path = NETWORK; epochs_done++
				:: else
				fi
			:: head == tail && epochs == epochs_done ->
				/* the probe of TCP */
				if
				:: tcp_read == tcp_delivered && fin_delivered ->
					over = true
				:: tcp_read < tcp_delivered -> skip /* bytes: look again for the epoch that was published before them */
				:: tcp_read == tcp_delivered && !fin_delivered ->
					(head != tail || epochs != epochs_done || tcp_read < tcp_delivered || fin_delivered)
				fi;
#ifdef BELIEVE_TCP
				done = over
#else
				done = over && head == tail && epochs == epochs_done
#endif
			:: else
			fi
		fi
	od;
	assert(expected == BYTES)
}
