/*
 * content.h - the bytes of a file as they are at one moment.
 *
 * A content is either a staging data file (dirty: its bytes change under the
 * hands of writers) or the extents of a manifest (sealed: they do not). It is
 * counted; whoever reads holds a reference, so the file may be sealed or
 * unsealed meanwhile. Nothing here touches the database but wfs_content_load.
 */
#ifndef WFS_CONTENT_H
#define WFS_CONTENT_H

#include <stdatomic.h>
#include <sys/types.h>

#include "lib/base.h"
#include "lib/datafile.h"
#include "lib/db.h"
#include "lib/err.h"
#include "lib/object.h"
#include "lib/safetensors.h"

/* Bytes that stand one behind the other both in the file and where they are kept. */
struct wfs_extent {
	uint64_t at;              /* in the file */
	uint64_t length;          /* bytes, > 0 */
	struct wfs_datafile *df;  /* NULL: bytes[] */
	uint64_t offset;          /* in the data file */
	const uint8_t *bytes;
	bool is_lost;             /* neither: the database does not have them as they were */
};

struct wfs_content {
	atomic_uint refs;
	struct wfs_datafiles *table;
	struct wfs_datafile *staging; /* dirty: everything is there; else NULL */
	/* sealed */
	uint64_t manifest; /* 0: empty */
	uint64_t size;     /* bytes */
	uint8_t *inline_bytes;
	size_t n;
	struct wfs_extent extents[]; /* in order, covering 0..size */
};

/* Both take over nothing; NULL: out of memory. */
struct wfs_content *wfs_content_new_staging(struct wfs_datafiles *table, uint64_t data_file);
struct wfs_content *wfs_content_new_empty(struct wfs_datafiles *table);

/*
 * Read manifest `id` (within a transaction). -EUCLEAN where it does not add
 * up. *ret has one reference. What has a whole copy, or is solid, is one extent and
 * takes as long whatever its number of objects; of the others neighbours are one extent
 * where their bytes are neighbours, too.
 */
int wfs_content_load(struct wfs_db *db, struct wfs_datafiles *table, uint64_t id,
	struct wfs_content **ret);

/* The content of one object alone (within a transaction); for comparing. */
int wfs_content_of_object(struct wfs_db *db, struct wfs_datafiles *table,
	const struct wfs_object *object, struct wfs_content **ret);

struct wfs_content *wfs_content_ref(struct wfs_content *c);
void wfs_content_unref(struct wfs_content *c); /* NULL is allowed */

/*
 * The header of a safetensors file, whatever its name. `*ret_buf` (free) holds the bytes
 * that *ret points into. 0 with ret->verdict set, or -errno.
 */
int wfs_content_header(struct wfs_content *c, uint8_t **ret_buf, struct wfs_safetensors *ret,
	struct wfs_err *err);

/* How it is kept: "dirty", "empty", "whole", "composed", or "database". Constant. */
const char *wfs_content_layout(const struct wfs_content *c);

/* The data file that holds all of it from offset 0 in order, with no bad range in it, or NULL. */
struct wfs_datafile *wfs_content_whole(const struct wfs_content *c);

int wfs_content_size(struct wfs_content *c, uint64_t *ret);

/* Of a sealed content: the number of the extent that holds `offset`, which is less than the size. */
size_t wfs_content_find(const struct wfs_content *c, uint64_t offset);

/* Bytes that stand one behind the other in a data file. */
struct wfs_span {
	struct wfs_content *content; /* a reference */
	struct wfs_datafile *df;
	int fd;          /* of the data file, in use until wfs_span_end */
	uint64_t offset; /* in the data file */
	size_t len;      /* bytes, > 0 */
};

/*
 * For who can move bytes without reading them: where [offset, +len) is, less at the end
 * of the content. 1; 0: there are no bytes, or not all in one place, so read them; -errno.
 */
int wfs_span_begin(struct wfs_span *span, struct wfs_content *c, uint64_t offset, size_t len);
void wfs_span_end(struct wfs_span *span);

/*
 * As pread(2): fewer bytes only at the end. -EIO where a data file ends too early, or a byte of
 * [offset, +len) is damaged.
 */
ssize_t wfs_content_read(struct wfs_content *c, void *buf, size_t len, uint64_t offset);

/* Of a sealed content: how many of the `len` bytes at `offset` come before the first that is damaged. */
size_t wfs_content_sound(struct wfs_content *c, size_t len, uint64_t offset);

/* SEEK_DATA, SEEK_HOLE: the offset or -ENXIO. */
int64_t wfs_content_seek(struct wfs_content *c, uint64_t offset, int whence);

#endif
