/*
 * array.h - arrays that grow: `list`, its `n` elements in use and its `room`,
 * all zero at first. Whoever owns them frees the list.
 */
#ifndef WFS_ARRAY_H
#define WFS_ARRAY_H

#include "lib/base.h"

/*
 * See to it that element n of a list can be written: one that is full becomes at least
 * twice as long, so that its elements may move. list is a pointer, room a size_t;
 * both are written, and named more than once. -ENOMEM, all as it was, also where
 * the size would not fit in a size_t.
 */
#define WFS_ARRAY_ROOM(list, n, room) WFS_ARRAY_ROOM_FOR(1, list, n, room)
/* The same for `more` elements, from number n on. */
#define WFS_ARRAY_ROOM_FOR(more, list, n, room) wfs_array_room(&(list), sizeof(*(list)), n, more, &(room))

/* What the macros call: ret_list is the address of the pointer, whatever it points to. */
int wfs_array_room(void *ret_list, size_t size, size_t n, size_t more, size_t *room) WFS_WARN_UNUSED;

#endif
