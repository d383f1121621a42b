#include "lib/npy_priv.h"

#include <errno.h>
#include <string.h>

#define TILE_BYTES ((size_t)32 << 20)
#define STAGE_BYTES ((size_t)256 << 10)
#define GAP_BYTES ((size_t)4 << 10)

#define GROUP 64 /* columns that are moved at once, most */
#define PAD 64	 /* bytes: columns of a power of two would share cache lines' places */

/*
 * In the file the first dimension is the fastest, in the output the last. A tile
 * is a piece of the output: a range of dimension `split` (its rows), all of those
 * behind it (its columns), one index of each before it. In the file its columns
 * lie at equal distances.
 */
struct order {
	const struct wfs_npy *npy;
	const struct wfs_npy_room *room;
	ssize_t (*read_at)(void *ctx, void *buf, size_t len, uint64_t offset);
	int (*append)(void *ctx, const void *buf, size_t len);
	void *ctx;
	size_t element; /* bytes */
	/* Dimensions of 1 are left out. */
	uint32_t ndim;
	uint64_t dim[WFS_NPY_MAX_DIMS];	     /* elements; 2 or more */
	uint64_t from[WFS_NPY_MAX_DIMS + 1]; /* bytes from one to the next in the file */
	uint64_t to[WFS_NPY_MAX_DIMS];	     /* the same in the output */
	uint32_t split;
	size_t columns;	  /* elements of one row */
	size_t rows_most; /* rows of one tile */
	uint8_t *tile;	  /* rows_most * columns elements, owned */
	uint8_t *stage;	  /* room->stage bytes, owned */
};

/* ---- reading and writing ---- */

/* `at`: from the start of the data. */
static int read_all(const struct order *o, uint8_t *buf, size_t len, uint64_t at)
{
	while (len) {
		ssize_t n = o->read_at(o->ctx, buf, len, o->npy->data_at + at);

		if (n < 0)
			return (int)n;
		if (!n || (size_t)n > len)
			return -EIO;
		buf += n;
		at += (size_t)n;
		len -= (size_t)n;
	}
	return 0;
}

static int append(const struct order *o, uint8_t *buf, size_t len)
{
	unsigned bytes = o->npy->dtype == WFS_DTYPE_C64 ? 4 : (unsigned)o->element;

	if (o->npy->big_endian)
		wfs_npy_swap(buf, len / bytes, bytes);
	return o->append(o->ctx, buf, len);
}

static int copy(const struct order *o)
{
	size_t most = o->room->stage - o->room->stage % o->element;

	for (uint64_t at = 0; at < o->npy->data_len;) {
		size_t len = WFS_MIN(o->npy->data_len - at, (uint64_t)most);
		int e = read_all(o, o->stage, len, at);

		if (!e)
			e = append(o, o->stage, len);
		if (e)
			return e;
		at += len;
	}
	return 0;
}

/* ---- a group of columns ---- */

/* How the columns of a tile are read: those of a group, a column, an element at once. */
enum reads { READ_GROUP, READ_COLUMN, READ_ELEMENT };

struct group {
	enum reads reads;
	uint64_t at;   /* its first element, bytes from the start of the data */
	uint64_t next; /* bytes from one column to the next in the file */
	size_t rows;
	size_t columns;
	size_t span;	     /* bytes of one column, with what lies between its elements */
	size_t column_pitch; /* bytes from one column to the next in the stage */
	size_t row_pitch;
	uint64_t to[GROUP]; /* where the columns belong in the tile, bytes */
};

static struct group make_group(const struct order *o, size_t rows, uint64_t at)
{
	struct group g = {.reads = READ_COLUMN,
		.at = at,
		.rows = rows,
		.next = o->from[o->split + 1],
		.row_pitch = o->from[o->split]};

	if (g.row_pitch - o->element > o->room->gap) {
		g.reads = READ_ELEMENT;
		g.row_pitch = o->element;
	}
	g.span = (rows - 1) * g.row_pitch + o->element;
	g.column_pitch = g.span + PAD;
	if (g.reads == READ_COLUMN && g.next - g.span <= o->room->gap) {
		g.reads = READ_GROUP;
		g.column_pitch = g.next;
	}
	return g;
}

/* Columns that the stage has room for; make_tiles saw to it that one fits. */
static size_t group_most(const struct order *o, const struct group *g)
{
	return WFS_MIN((o->room->stage - g->span) / g->column_pitch + 1, (size_t)GROUP);
}

static int load_elements(const struct order *o, const struct group *g, size_t column)
{
	int e = 0;

	for (size_t r = 0; !e && r < g->rows; r++)
		e = read_all(o, o->stage + column * g->column_pitch + r * g->row_pitch, o->element,
			g->at + column * g->next + r * o->from[o->split]);
	return e;
}

static int load(const struct order *o, const struct group *g)
{
	int e = 0;

	if (g->reads == READ_GROUP)
		return read_all(o, o->stage, (g->columns - 1) * g->next + g->span, g->at);
	for (size_t c = 0; !e && c < g->columns; c++)
		e = g->reads == READ_ELEMENT ? load_elements(o, g, c)
					     : read_all(o, o->stage + c * g->column_pitch, g->span,
						       g->at + c * g->next);
	return e;
}

/* Inlined for each size, so that memcpy is one instruction. */
static inline __attribute__((always_inline)) void move(
	const struct order *o, const struct group *g, size_t element)
{
	for (size_t r = 0; r < g->rows; r++) {
		uint8_t *to = o->tile + r * o->columns * element;
		const uint8_t *from = o->stage + r * g->row_pitch;

		for (size_t c = 0; c < g->columns; c++)
			memcpy(to + g->to[c], from + c * g->column_pitch, element);
	}
}

static void move_group(const struct order *o, const struct group *g)
{
	switch (o->element) {
	case 1:
		move(o, g, 1);
		break;
	case 2:
		move(o, g, 2);
		break;
	case 4:
		move(o, g, 4);
		break;
	default:
		move(o, g, 8);
	}
}

/* ---- tiles ---- */

/* Where the next column in the file belongs: an index over the dimensions behind
 * `split`, of which the first is the fastest. */
struct place {
	uint64_t index[WFS_NPY_MAX_DIMS];
	uint64_t to;
};

static void next_place(const struct order *o, struct place *p)
{
	for (uint32_t i = o->split + 1; i < o->ndim; i++) {
		p->to += o->to[i];
		if (++p->index[i] < o->dim[i])
			return;
		p->to -= o->to[i] * o->dim[i];
		p->index[i] = 0;
	}
}

static int write_tile(const struct order *o, size_t rows, uint64_t at)
{
	struct group g = make_group(o, rows, at);
	struct place place = {.to = 0};
	size_t most = group_most(o, &g);

	for (size_t c = 0; c < o->columns; c += g.columns) {
		int e;

		g.columns = WFS_MIN(o->columns - c, most);
		g.at = at + c * g.next;
		for (size_t i = 0; i < g.columns; i++, next_place(o, &place))
			g.to[i] = place.to;
		e = load(o, &g);
		if (e)
			return e;
		move_group(o, &g);
	}
	return append(o, o->tile, rows * o->columns * o->element);
}

/* Where the tiles of the next index over the dimensions before `split` begin, the
 * last of them the fastest. False: there is none. */
static bool next_start(const struct order *o, uint64_t *index, uint64_t *at)
{
	for (uint32_t i = o->split; i-- > 0;) {
		*at += o->from[i];
		if (++index[i] < o->dim[i])
			return true;
		*at -= o->from[i] * o->dim[i];
		index[i] = 0;
	}
	return false;
}

static int write_tiles(const struct order *o)
{
	uint64_t index[WFS_NPY_MAX_DIMS] = {0};
	uint64_t at = 0;

	do {
		for (uint64_t row = 0; row < o->dim[o->split]; row += o->rows_most) {
			uint64_t left = o->dim[o->split] - row;
			int e = write_tile(o, WFS_MIN(left, (uint64_t)o->rows_most),
				at + row * o->from[o->split]);

			if (e)
				return e;
		}
	} while (next_start(o, index, &at));
	return 0;
}

/* ---- sizes ---- */

static void read_dimensions(struct order *o)
{
	const struct wfs_npy *npy = o->npy;
	uint64_t bytes = o->element;

	for (uint32_t i = 0; i < npy->ndim; i++)
		if (npy->shape[i] != 1)
			o->dim[o->ndim++] = npy->shape[i];
	for (uint32_t i = 0; i < o->ndim; i++) {
		o->from[i] = bytes;
		bytes *= o->dim[i];
	}
	o->from[o->ndim] = bytes;
	bytes = o->element;
	for (uint32_t i = o->ndim; i-- > 0;) {
		o->to[i] = bytes;
		bytes *= o->dim[i];
	}
}

/* The first dimension of which one row fits a tile: the fewer before it, the less is
 * read that the tile does not need. A column must fit the stage as well. */
static void make_tiles(struct order *o)
{
	size_t rows;
	uint64_t pitch;

	while (o->to[o->split] > o->room->tile)
		o->split++;
	o->columns = o->to[o->split] / o->element;
	pitch = o->from[o->split];
	if (pitch - o->element > o->room->gap)
		pitch = o->element;
	rows = WFS_MIN(o->room->tile / o->to[o->split], (o->room->stage - o->element) / pitch + 1);
	o->rows_most = WFS_MIN(o->dim[o->split], (uint64_t)rows);
}

static int reorder(struct order *o)
{
	int e;

	make_tiles(o);
	o->tile = malloc(o->rows_most * o->columns * o->element);
	if (!o->tile)
		return -ENOMEM;
	e = write_tiles(o);
	free(o->tile);
	return e;
}

int wfs_npy_to_c_within(const struct wfs_npy *npy, const struct wfs_npy_room *room,
	ssize_t (*read_at)(void *ctx, void *buf, size_t len, uint64_t offset),
	int (*append_to)(void *ctx, const void *buf, size_t len), void *ctx)
{
	struct order o = {.npy = npy,
		.room = room,
		.read_at = read_at,
		.append = append_to,
		.ctx = ctx,
		.element = wfs_dtype_bits(npy->dtype) / 8};
	int e;

	if (!npy->data_len)
		return 0;
	o.stage = malloc(room->stage);
	if (!o.stage)
		return -ENOMEM;
	read_dimensions(&o);
	e = npy->fortran_order && o.ndim > 1 ? reorder(&o) : copy(&o);
	free(o.stage);
	return e;
}

int wfs_npy_to_c(const struct wfs_npy *npy,
	ssize_t (*read_at)(void *ctx, void *buf, size_t len, uint64_t offset),
	int (*append_to)(void *ctx, const void *buf, size_t len), void *ctx)
{
	static const struct wfs_npy_room room = {TILE_BYTES, STAGE_BYTES, GAP_BYTES};

	return wfs_npy_to_c_within(npy, &room, read_at, append_to, ctx);
}

/* ---- byte order ---- */

static inline __attribute__((always_inline)) void swap_each(uint8_t *p, size_t n, unsigned bytes)
{
	for (; n; n--, p += bytes) {
		uint64_t v = 0;

		memcpy(&v, p, bytes);
		v = __builtin_bswap64(v);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
		v >>= 64 - 8 * bytes;
#else
		v <<= 64 - 8 * bytes;
#endif
		memcpy(p, &v, bytes);
	}
}

void wfs_npy_swap(void *buf, size_t n, unsigned element_bytes)
{
	switch (element_bytes) {
	case 2:
		swap_each(buf, n, 2);
		break;
	case 4:
		swap_each(buf, n, 4);
		break;
	case 8:
		swap_each(buf, n, 8);
		break;
	default:
		break;
	}
}
