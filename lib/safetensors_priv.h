/*
 * safetensors_priv.h - between safetensors.c, safetensors_header.c and
 * safetensors_build.c.
 *
 * safetensors_header.c reads the text of a header by itself: grammar and
 * types. safetensors.c does what comes before (the length, UTF-8) and after
 * (order, sizes, the file's length).
 */
#ifndef WFS_SAFETENSORS_PRIV_H
#define WFS_SAFETENSORS_PRIV_H

#include "lib/safetensors.h"
#include "lib/utf8.h"

/* Longest part of a name that a message shows, bytes. */
#define WFS_ST_SHOWN_MAX 64

/* The two arguments of "%.*s" for a text of the header in a message. */
#define WFS_ST_SHOW(text, len) (int)wfs_utf8_prefix((text), (len), WFS_ST_SHOWN_MAX), (text)

/*
 * Read the JSON text of `len` bytes at st->json, which is UTF-8 but may be cut
 * within its last character if it is not `whole`. Fills st->tensors (in order
 * of first appearance), st->meta, st->strings and st->warnings.
 *
 * 0 if the text is right as far as it goes; -EBADMSG with *err and st->verdict
 * set; -ENOMEM. The caller releases *st in every case.
 */
int wfs_st_read_header(struct wfs_safetensors *st, size_t len, bool whole, struct wfs_err *err);

/* The number of elements that a shape stands for. */
struct wfs_st_size {
	uint64_t elements; /* unusable if it overflows */
	bool overflows;
};

/* Start with { 1, false } and pass every dimension, first to last: a 0 behind
 * an overflow does not heal it, a 0 before it prevents it. */
void wfs_st_size_times(struct wfs_st_size *size, uint64_t dim);

/* NULL and *ret = bytes; or "shape-overflow", "shape-misaligned". */
const char *wfs_st_size_bytes(const struct wfs_st_size *size, enum wfs_dtype dtype, uint64_t *ret);

#endif
