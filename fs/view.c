#include <errno.h>
#include <string.h>

#include "fs/driver.h"

#define FIRST_SIZE 256

int wfs_views_init(struct wfs_views *v)
{
	v->n = 0;
	v->n_buckets = FIRST_SIZE;
	v->buckets = calloc(FIRST_SIZE, sizeof(*v->buckets));
	pthread_mutex_init(&v->lock, NULL);
	return v->buckets ? 0 : -ENOMEM;
}

static void free_node(struct wfs_view_node *node)
{
	free((char *)node->key.variant);
	free((char *)node->key.name);
	free(node);
}

void wfs_views_release(struct wfs_views *v)
{
	for (size_t i = 0; v->buckets && i < v->n_buckets; i++) {
		while (v->buckets[i]) {
			struct wfs_view_node *node = v->buckets[i];

			v->buckets[i] = node->next;
			free_node(node);
		}
	}
	free(v->buckets);
	pthread_mutex_destroy(&v->lock);
}

/* ---- keys ---- */

/* FNV-1a, 64 bits: http://www.isthe.com/chongo/tech/comp/fnv/ */
static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t len)
{
	const uint8_t *at = bytes;

	for (size_t i = 0; i < len; i++)
		hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
	return hash;
}

static uint64_t hash_key(const struct wfs_view_key *key, uint64_t serial)
{
	const uint64_t numbers[] = {key->kind, key->form, key->ino, key->size, serial};
	const char *variant = key->variant ? key->variant : "/";
	uint64_t hash = hash_bytes(UINT64_C(0xcbf29ce484222325), numbers, sizeof(numbers));

	hash = hash_bytes(hash, variant, strlen(variant) + 1);
	return key->name ? hash_bytes(hash, key->name, key->name_len) : hash;
}

/* The kernel shows 64 bits of an inode number; what counts as signed somewhere stays positive. */
static uint64_t ino_of(uint64_t hash)
{
	return WFS_VIEW_INO | (hash & (WFS_VIEW_INO - 1));
}

uint64_t wfs_view_st_ino(const struct wfs_view_key *key)
{
	return ino_of(hash_key(key, 0));
}

static bool is_same_key(const struct wfs_view_key *a, const struct wfs_view_key *b)
{
	return a->kind == b->kind && a->form == b->form && a->ino == b->ino && a->size == b->size &&
	       a->serial == b->serial && wfs_is_same_text(a->variant, b->variant) &&
	       !a->name == !b->name && a->name_len == b->name_len &&
	       (!a->name || memcmp(a->name, b->name, a->name_len) == 0);
}

static int copy_key(const struct wfs_view_key *from, struct wfs_view_key *to)
{
	*to = *from;
	to->variant = from->variant ? strdup(from->variant) : NULL;
	to->name = NULL;
	if (from->name) {
		char *name = malloc(from->name_len + 1);

		if (name) {
			memcpy(name, from->name, from->name_len);
			name[from->name_len] = '\0';
		}
		to->name = name;
	}
	if (!to->variant == !from->variant && !to->name == !from->name)
		return 0;
	free((char *)to->variant);
	free((char *)to->name);
	return -ENOMEM;
}

/* ---- the table; under its lock ---- */

static struct wfs_view_node **slot_of(struct wfs_views *v, uint64_t ino)
{
	struct wfs_view_node **p = &v->buckets[ino & (v->n_buckets - 1)];

	while (*p && (*p)->ino != ino)
		p = &(*p)->next;
	return p;
}

/* Twice as many buckets; without memory the chains just get longer. */
static void grow(struct wfs_views *v)
{
	size_t size = 2 * v->n_buckets;
	struct wfs_view_node **buckets = calloc(size, sizeof(*buckets));

	if (!buckets)
		return;
	for (size_t i = 0; i < v->n_buckets; i++) {
		while (v->buckets[i]) {
			struct wfs_view_node *node = v->buckets[i];

			v->buckets[i] = node->next;
			node->next = buckets[node->ino & (size - 1)];
			buckets[node->ino & (size - 1)] = node;
		}
	}
	free(v->buckets);
	v->buckets = buckets;
	v->n_buckets = size;
}

/* The node of this key, which is made if there is none; NULL: out of memory. */
static struct wfs_view_node *get_node(struct wfs_views *v, const struct wfs_view_key *key)
{
	uint64_t ino = ino_of(hash_key(key, key->serial));
	struct wfs_view_node **slot, *node;

	/* Another key may have had this number first. */
	while (*(slot = slot_of(v, ino)) && !is_same_key(&(*slot)->key, key))
		ino = ino_of(ino + 1);
	node = *slot;
	if (node)
		return node;
	node = calloc(1, sizeof(*node));
	if (!node || copy_key(key, &node->key) != 0) {
		free(node);
		return NULL;
	}
	node->ino = ino;
	*slot = node;
	if (++v->n > v->n_buckets)
		grow(v);
	return node;
}

int wfs_view_intern(struct wfs_views *v, const struct wfs_view_key *key, const struct stat *st,
	uint64_t *ret_ino)
{
	struct wfs_view_node *node;

	pthread_mutex_lock(&v->lock);
	node = get_node(v, key);
	if (node && node->nlookup++ == 0)
		node->st = *st;
	if (node)
		*ret_ino = node->ino;
	pthread_mutex_unlock(&v->lock);
	return node ? 0 : -ENOMEM;
}

void wfs_view_forget(struct wfs_views *v, uint64_t ino, uint64_t n)
{
	struct wfs_view_node **slot, *node;

	pthread_mutex_lock(&v->lock);
	slot = slot_of(v, ino);
	node = *slot;
	if (node) {
		node->nlookup -= WFS_MIN(n, node->nlookup);
		if (node->nlookup == 0) {
			*slot = node->next;
			v->n--;
		} else {
			node = NULL;
		}
	}
	pthread_mutex_unlock(&v->lock);
	if (node)
		free_node(node);
}

const struct wfs_view_node *wfs_view_node(struct wfs_views *v, uint64_t ino)
{
	struct wfs_view_node *node;

	pthread_mutex_lock(&v->lock);
	node = *slot_of(v, ino);
	pthread_mutex_unlock(&v->lock);
	return node;
}

/* ---- which cuts there are ---- */

static int compare_sizes(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static size_t gather_sizes(struct wfs_views *v, uint64_t dir, const char *variant, uint64_t *sizes)
{
	size_t n = 0;

	for (size_t i = 0; i < v->n_buckets; i++)
		for (const struct wfs_view_node *node = v->buckets[i]; node; node = node->next)
			if (node->key.kind == WFS_VIEW_CUT && node->key.ino == dir &&
				wfs_is_same_text(node->key.variant, variant))
				sizes[n++] = node->key.size;
	return n;
}

int wfs_view_sizes(
	struct wfs_views *v, uint64_t dir, const char *variant, uint64_t **ret, size_t *ret_n)
{
	uint64_t *sizes;
	size_t n = 0;

	pthread_mutex_lock(&v->lock);
	sizes = reallocarray(NULL, v->n + 1, sizeof(*sizes));
	if (sizes)
		n = gather_sizes(v, dir, variant, sizes);
	pthread_mutex_unlock(&v->lock);
	if (!sizes)
		return -ENOMEM;
	if (n)
		qsort(sizes, n, sizeof(*sizes), compare_sizes);
	*ret = sizes;
	*ret_n = 0;
	for (size_t i = 0; i < n; i++)
		if (*ret_n == 0 || sizes[*ret_n - 1] != sizes[i])
			sizes[(*ret_n)++] = sizes[i];
	return 0;
}
