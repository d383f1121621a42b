#include "lib/compose.h"

#include <errno.h>
#include <string.h>

/* More bytes than are ever needed for headers and what the database holds; a store made by others
 * could name more. */
#define MAX_INLINE (UINT64_C(256) << 20)

int wfs_compose_begin(struct wfs_composer *p, struct wfs_datafiles *table)
{
	*p = (struct wfs_composer){.content = wfs_content_new_empty(table)};
	return p->content ? 0 : -ENOMEM;
}

/* Room for one more extent, and where the file ends behind it. */
static int prepare(struct wfs_composer *p, uint64_t length, uint64_t *ret_end)
{
	struct wfs_content *c = p->content;
	size_t room = p->room ? 2 * p->room : 8;

	if (length == 0 || wfs_add_overflows(c->size, length, ret_end) || *ret_end > INT64_MAX)
		return -EUCLEAN;
	if (c->n < p->room)
		return 0;
	c = realloc(c, sizeof(*c) + room * sizeof(c->extents[0]));
	if (!c)
		return -ENOMEM;
	p->content = c;
	p->room = room;
	return 0;
}

/* ---- in data files ---- */

/* True if what is at `offset` goes on where the last extent ends. */
static bool extends_last(const struct wfs_content *c, uint64_t data_file, uint64_t offset)
{
	const struct wfs_extent *last = c->n ? &c->extents[c->n - 1] : NULL;

	return last && last->df && last->df->id == data_file &&
	       last->offset + last->length == offset;
}

int wfs_compose_place(struct wfs_composer *p, uint64_t data_file, uint64_t offset, uint64_t length)
{
	struct wfs_extent *e;
	uint64_t end, place_end;
	int ret = prepare(p, length, &end);

	if (ret)
		return ret;
	if (wfs_add_overflows(offset, length, &place_end) || place_end > INT64_MAX)
		return -EUCLEAN;
	if (extends_last(p->content, data_file, offset)) {
		p->content->extents[p->content->n - 1].length += length;
		p->content->size = end;
		return 0;
	}
	e = &p->content->extents[p->content->n];
	*e = (struct wfs_extent){.at = p->content->size, .length = length, .offset = offset};
	e->df = wfs_datafile_get(p->content->table, data_file);
	if (!e->df)
		return -ENOMEM;
	p->content->n++;
	p->content->size = end;
	return 0;
}

/* ---- in memory ---- */

static int grow_inline(struct wfs_composer *p, uint64_t need)
{
	uint64_t room = WFS_MAX(need, 2 * p->inline_room);
	uint8_t *grown;

	if (need <= p->inline_room)
		return 0;
	grown = realloc(p->content->inline_bytes, room);
	if (!grown)
		return -ENOMEM;
	p->content->inline_bytes = grown;
	p->inline_room = room;
	return 0;
}

int wfs_compose_room(struct wfs_composer *p, uint64_t length, uint8_t **ret)
{
	uint64_t end, need;
	struct wfs_content *c;
	int err = prepare(p, length, &end);

	if (err)
		return err;
	if (wfs_add_overflows(p->inline_len, length, &need) || need > MAX_INLINE)
		return -EUCLEAN;
	err = grow_inline(p, need);
	if (err)
		return err;
	c = p->content;
	*ret = c->inline_bytes + p->inline_len;
	/* The buffer may still move: keep the place, see wfs_compose_end. Neighbours in it are so
	 * in the file. */
	if (c->n && !c->extents[c->n - 1].df && !c->extents[c->n - 1].is_lost)
		c->extents[c->n - 1].length += length;
	else
		c->extents[c->n++] = (struct wfs_extent){
			.at = c->size, .length = length, .offset = p->inline_len};
	p->inline_len = need;
	c->size = end;
	return 0;
}

int wfs_compose_bytes(struct wfs_composer *p, const void *bytes, uint64_t length)
{
	uint8_t *at;
	int ret = wfs_compose_room(p, length, &at);

	if (ret == 0)
		memcpy(at, bytes, length);
	return ret;
}

/* ---- nowhere ---- */

int wfs_compose_lost(struct wfs_composer *p, uint64_t length)
{
	uint64_t end;
	int ret = prepare(p, length, &end);

	if (ret)
		return ret;
	p->content->extents[p->content->n++] = (struct wfs_extent){
		.at = p->content->size, .length = length, .is_lost = true};
	p->content->size = end;
	return 0;
}

/* ---- parts of others ---- */

static int add_slice(
	struct wfs_composer *p, const struct wfs_extent *e, uint64_t skip, uint64_t length)
{
	if (e->is_lost)
		return wfs_compose_lost(p, length);
	if (e->df)
		return wfs_compose_place(p, e->df->id, e->offset + skip, length);
	return wfs_compose_bytes(p, e->bytes + skip, length);
}

int wfs_compose_part(
	struct wfs_composer *p, const struct wfs_content *from, uint64_t offset, uint64_t length)
{
	int ret = 0;

	if (from->staging)
		return wfs_compose_place(p, from->staging->id, offset, length);
	if (offset > from->size || length > from->size - offset)
		return -EUCLEAN;
	for (size_t i = wfs_content_find(from, offset); length > 0 && ret == 0; i++) {
		const struct wfs_extent *e = &from->extents[i];
		uint64_t skip = offset - e->at;
		uint64_t part = WFS_MIN(length, e->length - skip);

		ret = add_slice(p, e, skip, part);
		offset += part;
		length -= part;
	}
	return ret;
}

/* ---- the end ---- */

struct wfs_content *wfs_compose_end(struct wfs_composer *p)
{
	struct wfs_content *c = p->content;

	for (size_t i = 0; i < c->n; i++)
		if (!c->extents[i].df && !c->extents[i].is_lost)
			c->extents[i].bytes = c->inline_bytes + c->extents[i].offset;
	p->content = NULL;
	return c;
}

void wfs_compose_abandon(struct wfs_composer *p)
{
	wfs_content_unref(p->content);
	p->content = NULL;
}
