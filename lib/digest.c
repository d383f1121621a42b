#include "lib/digest.h"

#include <stdio.h>
#include <string.h>

/* Compiled in: the size of the state is then known, and calls on small pieces cost nothing. */
#define XXH_INLINE_ALL
#include <xxhash.h>

_Static_assert(sizeof(XXH3_state_t) <= sizeof(((struct wfs_hasher *)0)->state),
	"wfs_hasher.state holds an XXH3_state_t");

static XXH3_state_t *state_of(struct wfs_hasher *h)
{
	return (XXH3_state_t *)(void *)h->state;
}

void wfs_hasher_init(struct wfs_hasher *h, unsigned bits)
{
	XXH3_128bits_reset(state_of(h));
	h->bits = bits;
}

void wfs_hasher_update(struct wfs_hasher *h, const void *buf, size_t len)
{
	XXH3_128bits_update(state_of(h), buf, len);
}

static struct wfs_digest cut(XXH128_hash_t hash, unsigned bits)
{
	XXH128_canonical_t canonical;
	struct wfs_digest d;

	XXH128_canonicalFromHash(&canonical, hash);
	memcpy(d.bytes, canonical.digest, sizeof(d.bytes));
	for (unsigned i = 0; i < WFS_DIGEST_SIZE; i++) {
		unsigned keep = bits > 8 * i ? bits - 8 * i : 0;

		if (keep < 8)
			d.bytes[i] = (uint8_t)(d.bytes[i] & ~(0xffu >> keep));
	}
	return d;
}

struct wfs_digest wfs_hasher_final(const struct wfs_hasher *h)
{
	return cut(XXH3_128bits_digest((const XXH3_state_t *)(const void *)h->state), h->bits);
}

struct wfs_digest wfs_digest_of(const void *buf, size_t len, unsigned bits)
{
	return cut(XXH3_128bits(buf, len), bits);
}

bool wfs_digest_equal(const struct wfs_digest *a, const struct wfs_digest *b)
{
	return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

void wfs_digest_text(const struct wfs_digest *d, char text[WFS_DIGEST_TEXT_SIZE])
{
	char *p = text + sprintf(text, "xxh3:");

	for (unsigned i = 0; i < WFS_DIGEST_SIZE; i++)
		p += sprintf(p, "%02x", d->bytes[i]);
}
