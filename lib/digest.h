/*
 * digest.h - the name of a byte string: XXH3-128.
 *
 * Not cryptographic: equal digests are a hint, and whoever shares compares
 * the bytes. Printed as "xxh3:" and 32 hex digits (big endian, as xxhsum -H2).
 */
#ifndef WFS_DIGEST_H
#define WFS_DIGEST_H

#include "lib/base.h"

#define WFS_DIGEST_SIZE 16
#define WFS_DIGEST_TEXT_SIZE (5 + 2 * WFS_DIGEST_SIZE + 1) /* with "xxh3:" and NUL */

struct wfs_digest {
	uint8_t bytes[WFS_DIGEST_SIZE];
};

/* A digest being computed; caller's storage. */
struct wfs_hasher {
	_Alignas(64) uint8_t state[576]; /* an XXH3_state_t */
	unsigned bits;                   /* of the digest that are kept */
};

/*
 * `bits` is 128 but in tests of collisions: all further bits of the digest
 * are then zero, so that different contents share one.
 */
void wfs_hasher_init(struct wfs_hasher *h, unsigned bits);
void wfs_hasher_update(struct wfs_hasher *h, const void *buf, size_t len);
struct wfs_digest wfs_hasher_final(const struct wfs_hasher *h);

struct wfs_digest wfs_digest_of(const void *buf, size_t len, unsigned bits);
bool wfs_digest_equal(const struct wfs_digest *a, const struct wfs_digest *b);
void wfs_digest_text(const struct wfs_digest *d, char text[WFS_DIGEST_TEXT_SIZE]);

#endif
