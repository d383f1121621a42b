/*
 * compose.h - a sealed content put together from places in data files, bytes of its own
 * and parts of other contents: what a manifest is read into (lib/content.h), and what
 * the file of a view is (lib/model.h).
 *
 * Order: begin, any number of additions, end. One thread; the content that comes out is
 * anybody's. Nothing here reads data or touches the database.
 */
#ifndef WFS_COMPOSE_H
#define WFS_COMPOSE_H

#include "lib/content.h"

struct wfs_composer {
	struct wfs_content *content; /* as far as it has come; read size and n, change nothing */
	size_t room;		     /* of its extents */
	uint64_t inline_len, inline_room;
};

/* -ENOMEM. */
int wfs_compose_begin(struct wfs_composer *p, struct wfs_datafiles *table);

/*
 * Add what comes next. -EUCLEAN where `length` is 0 or a sum passes what a file can
 * have, or too many bytes would be in memory; -ENOMEM. Neighbours in one data file become one
 * extent.
 */
int wfs_compose_place(struct wfs_composer *p, uint64_t data_file, uint64_t offset, uint64_t length);
/* Bytes in memory: where to put them, until the next addition. */
int wfs_compose_room(struct wfs_composer *p, uint64_t length, uint8_t **ret);
int wfs_compose_bytes(struct wfs_composer *p, const void *bytes, uint64_t length);
/* Bytes that are not there any more: reading them gives EIO. */
int wfs_compose_lost(struct wfs_composer *p, uint64_t length);
/* [offset, offset + length) of `from`, which are within it. Nothing is kept of `from` but its data
 * files. */
int wfs_compose_part(
	struct wfs_composer *p, const struct wfs_content *from, uint64_t offset, uint64_t length);

/* The content, with one reference, the caller's. */
struct wfs_content *wfs_compose_end(struct wfs_composer *p);
/* Drop what there is of it. */
void wfs_compose_abandon(struct wfs_composer *p);

#endif
