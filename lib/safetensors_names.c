#include "lib/safetensors_names.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include <xxhash.h>

#define FIRST_SLOTS 64
#define INDEX_MASK WFS_NAMES_MAX

void wfs_names_init(struct wfs_names *names,
	struct wfs_text (*text_of)(const void *owner, uint32_t i), const void *owner)
{
	*names = (struct wfs_names){ .text_of = text_of, .owner = owner };
	/* Without randomness (early at boot) the address has to do. */
	if (getrandom(&names->seed, sizeof(names->seed), GRND_NONBLOCK) !=
		(ssize_t)sizeof(names->seed))
		names->seed = (uint64_t)(uintptr_t)names;
}

void wfs_names_release(struct wfs_names *names)
{
	free(names->slots);
	names->slots = NULL;
}

static bool is_same(struct wfs_text a, struct wfs_text b)
{
	return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0);
}

static uint64_t hash_of(const struct wfs_names *names, struct wfs_text text)
{
	return XXH3_64bits_withSeed(text.at, text.len, names->seed);
}

/* Bits of the hash that do not choose the slot, where they stand in a slot. */
static uint32_t tag_of(uint64_t hash)
{
	return (uint32_t)(hash >> 32) & ~INDEX_MASK;
}

static bool holds(const struct wfs_names *names, uint32_t slot, uint32_t tag, struct wfs_text text)
{
	return (slot & ~INDEX_MASK) == tag &&
		is_same(names->text_of(names->owner, (slot & INDEX_MASK) - 1), text);
}

/* Known to be absent, so nothing is compared. */
static void put_back(struct wfs_names *names, uint32_t element)
{
	uint64_t hash = hash_of(names, names->text_of(names->owner, element));
	uint32_t i = (uint32_t)hash & (names->n_slots - 1);

	while (names->slots[i])
		i = (i + 1) & (names->n_slots - 1);
	names->slots[i] = tag_of(hash) | (element + 1);
}

/* The old table goes first, so that there are never two. */
static int grow(struct wfs_names *names)
{
	uint32_t n = names->n_slots ? names->n_slots * 2 : FIRST_SLOTS;

	free(names->slots);
	names->slots = calloc(n, sizeof(*names->slots));
	if (!names->slots)
		return -ENOMEM;
	names->n_slots = n;
	for (uint32_t i = 0; i < names->n; i++)
		put_back(names, i);
	return 0;
}

int wfs_names_add(struct wfs_names *names, struct wfs_text text, uint32_t *ret)
{
	uint64_t hash = hash_of(names, text);
	uint32_t i, tag = tag_of(hash);

	if (names->n == WFS_NAMES_MAX)
		return -ENOMEM;
	if (names->n >= names->n_slots / 4 * 3 && grow(names) < 0)
		return -ENOMEM;
	i = (uint32_t)hash & (names->n_slots - 1);
	while (names->slots[i]) {
		if (holds(names, names->slots[i], tag, text)) {
			*ret = (names->slots[i] & INDEX_MASK) - 1;
			return 1;
		}
		i = (i + 1) & (names->n_slots - 1);
	}
	*ret = names->n++;
	names->slots[i] = tag | names->n;
	return 0;
}
