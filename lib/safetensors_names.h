/*
 * safetensors_names.h - find texts again among many: tensor names, metadata
 * keys.
 *
 * A set of the indexes of an array that belongs to the caller, found by the
 * text that each element has. The set holds neither the texts nor pointers to
 * the array, so the array may move when it grows. Up to 11 bytes for each
 * element; the hash is seeded at random, so that nobody can prepare names
 * that collide. One thread at a time.
 *
 * A slot is 32 bits: the index + 1 below, and above it 8 bits of the hash, so
 * that other texts are nearly never looked at.
 */
#ifndef WFS_SAFETENSORS_NAMES_H
#define WFS_SAFETENSORS_NAMES_H

#include "lib/base.h"

/* Elements at most. No header has as many: a metadata pair is 6 bytes. */
#define WFS_NAMES_MAX ((UINT32_C(1) << 24) - 1)

struct wfs_text {
	const char *at; /* not terminated */
	size_t len;     /* bytes */
};

struct wfs_names {
	struct wfs_text (*text_of)(const void *owner, uint32_t i);
	const void *owner; /* argument of text_of */
	uint32_t *slots;   /* 0 where empty */
	uint32_t n_slots;
	uint32_t n;        /* elements in the set: 0 … n - 1 */
	uint64_t seed;
};

/* `text_of` must give the text of element i of the owner for every i that was added. */
void wfs_names_init(struct wfs_names *names,
	struct wfs_text (*text_of)(const void *owner, uint32_t i), const void *owner);

void wfs_names_release(struct wfs_names *names);

/*
 * 1, and *ret the index of the element that has this text; or 0, and *ret the
 * index that was added for it: the number of elements before. The caller makes
 * that element before the next call. -ENOMEM, also beyond WFS_NAMES_MAX: the
 * set can then only be released.
 */
int wfs_names_add(struct wfs_names *names, struct wfs_text text, uint32_t *ret);

#endif
