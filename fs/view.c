#include <errno.h>
#include <string.h>

#include "fs/driver.h"

int wfs_views_init(struct wfs_views *v)
{
	pthread_mutex_init(&v->lock, NULL);
	return wfs_table_init(&v->table);
}

static void free_node(struct wfs_node *node)
{
	struct wfs_view_node *view = (struct wfs_view_node *)node;

	free((char *)view->key.variant);
	free((char *)view->key.name);
	free(view);
}

void wfs_views_release(struct wfs_views *v)
{
	wfs_table_release(&v->table, free_node);
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

static struct wfs_view_node *find(struct wfs_views *v, uint64_t ino)
{
	return (struct wfs_view_node *)wfs_table_find(&v->table, ino);
}

/* The node of this key, which is made if there is none; NULL: out of memory. */
static struct wfs_view_node *get_node(struct wfs_views *v, const struct wfs_view_key *key)
{
	uint64_t ino = ino_of(hash_key(key, key->serial));
	struct wfs_view_node *node;

	/* Another key may have had this number first. */
	while ((node = find(v, ino)) && !is_same_key(&node->key, key))
		ino = ino_of(ino + 1);
	if (node)
		return node;
	node = calloc(1, sizeof(*node));
	if (!node || copy_key(key, &node->key) != 0) {
		free(node);
		return NULL;
	}
	node->node.id = ino;
	wfs_table_add(&v->table, &node->node);
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
		*ret_ino = node->node.id;
	pthread_mutex_unlock(&v->lock);
	return node ? 0 : -ENOMEM;
}

void wfs_view_forget(struct wfs_views *v, uint64_t ino, uint64_t n)
{
	struct wfs_view_node *node;

	pthread_mutex_lock(&v->lock);
	node = find(v, ino);
	if (node)
		node->nlookup -= WFS_MIN(n, node->nlookup);
	if (node && node->nlookup == 0)
		wfs_table_remove(&v->table, &node->node);
	else
		node = NULL;
	pthread_mutex_unlock(&v->lock);
	if (node)
		free_node(&node->node);
}

const struct wfs_view_node *wfs_view_node(struct wfs_views *v, uint64_t ino)
{
	struct wfs_view_node *node;

	pthread_mutex_lock(&v->lock);
	node = find(v, ino);
	pthread_mutex_unlock(&v->lock);
	return node;
}

/* ---- which cuts there are ---- */

static int compare_sizes(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

struct gathering {
	uint64_t dir;
	const char *variant;
	uint64_t *sizes;
	size_t n;
};

static void gather_size(void *ctx, const struct wfs_node *node)
{
	const struct wfs_view_key *key = &((const struct wfs_view_node *)node)->key;
	struct gathering *g = ctx;

	if (key->kind == WFS_VIEW_CUT && key->ino == g->dir && wfs_is_same_text(key->variant, g->variant))
		g->sizes[g->n++] = key->size;
}

int wfs_view_sizes(
	struct wfs_views *v, uint64_t dir, const char *variant, uint64_t **ret, size_t *ret_n)
{
	struct gathering g = { .dir = dir, .variant = variant };
	uint64_t *sizes;

	pthread_mutex_lock(&v->lock);
	g.sizes = sizes = reallocarray(NULL, v->table.n + 1, sizeof(*sizes));
	if (sizes)
		wfs_table_each(&v->table, gather_size, &g);
	pthread_mutex_unlock(&v->lock);
	if (!sizes)
		return -ENOMEM;
	if (g.n)
		qsort(sizes, g.n, sizeof(*sizes), compare_sizes);
	*ret = sizes;
	*ret_n = 0;
	for (size_t i = 0; i < g.n; i++)
		if (*ret_n == 0 || sizes[*ret_n - 1] != sizes[i])
			sizes[(*ret_n)++] = sizes[i];
	return 0;
}
