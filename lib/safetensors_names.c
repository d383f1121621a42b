#include "lib/safetensors_names.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include <xxhash.h>

#define FIRST_SLOTS 64

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

/* The slot that holds this text, or the empty one where it belongs. */
static uint32_t *find_slot(const struct wfs_names *names, struct wfs_text text)
{
	uint64_t hash = XXH3_64bits_withSeed(text.at, text.len, names->seed);
	uint32_t i = (uint32_t)hash & (names->n_slots - 1);

	while (names->slots[i] &&
		!is_same(names->text_of(names->owner, names->slots[i] - 1), text))
		i = (i + 1) & (names->n_slots - 1);
	return &names->slots[i];
}

/* Known to be absent, so nothing is compared. */
static void put_back(struct wfs_names *names, uint32_t element)
{
	struct wfs_text text = names->text_of(names->owner, element);
	uint64_t hash = XXH3_64bits_withSeed(text.at, text.len, names->seed);
	uint32_t i = (uint32_t)hash & (names->n_slots - 1);

	while (names->slots[i])
		i = (i + 1) & (names->n_slots - 1);
	names->slots[i] = element + 1;
}

/* The old table goes first, so that there are never two; after -ENOMEM the set
 * cannot be used again, which nobody does. */
static int grow(struct wfs_names *names)
{
	uint32_t n = names->n_slots ? names->n_slots * 2 : FIRST_SLOTS;

	free(names->slots);
	names->slots = calloc(n, sizeof(*names->slots));
	names->n_slots = names->slots ? n : 0;
	if (!names->slots)
		return -ENOMEM;
	for (uint32_t i = 0; i < names->n; i++)
		put_back(names, i);
	return 0;
}

int wfs_names_add(struct wfs_names *names, struct wfs_text text, uint32_t *ret)
{
	uint32_t *slot;

	if (names->n >= names->n_slots / 4 * 3 && grow(names) < 0)
		return -ENOMEM;
	slot = find_slot(names, text);
	if (*slot) {
		*ret = *slot - 1;
		return 1;
	}
	*ret = names->n++;
	*slot = names->n;
	return 0;
}
