#include "lib/table.h"

#include <errno.h>

#define FIRST_SIZE 256

int wfs_table_init(struct wfs_table *t)
{
	t->n = 0;
	t->n_buckets = FIRST_SIZE;
	t->buckets = calloc(FIRST_SIZE, sizeof(struct wfs_node *));
	return t->buckets ? 0 : -ENOMEM;
}

void wfs_table_release(struct wfs_table *t, void (*free_node)(struct wfs_node *node))
{
	for (size_t i = 0; t->buckets && i < t->n_buckets; i++) {
		while (t->buckets[i]) {
			struct wfs_node *node = t->buckets[i];

			t->buckets[i] = node->next;
			free_node(node);
		}
	}
	free(t->buckets);
	t->buckets = NULL;
}

static struct wfs_node **bucket_of(const struct wfs_table *t, uint64_t id)
{
	return &t->buckets[id & (t->n_buckets - 1)];
}

struct wfs_node *wfs_table_find(const struct wfs_table *t, uint64_t id)
{
	struct wfs_node *node = *bucket_of(t, id);

	while (node && node->id != id)
		node = node->next;
	return node;
}

static void link_node(struct wfs_table *t, struct wfs_node *node)
{
	struct wfs_node **bucket = bucket_of(t, node->id);

	node->next = *bucket;
	*bucket = node;
}

/* Twice as many buckets; without memory the chains just get longer. */
static void grow(struct wfs_table *t)
{
	struct wfs_table larger = { .n_buckets = 2 * t->n_buckets };

	larger.buckets = calloc(larger.n_buckets, sizeof(struct wfs_node *));
	if (!larger.buckets)
		return;
	for (size_t i = 0; i < t->n_buckets; i++) {
		while (t->buckets[i]) {
			struct wfs_node *node = t->buckets[i];

			t->buckets[i] = node->next;
			link_node(&larger, node);
		}
	}
	free(t->buckets);
	t->buckets = larger.buckets;
	t->n_buckets = larger.n_buckets;
}

void wfs_table_add(struct wfs_table *t, struct wfs_node *node)
{
	link_node(t, node);
	if (++t->n > t->n_buckets)
		grow(t);
}

void wfs_table_remove(struct wfs_table *t, struct wfs_node *node)
{
	struct wfs_node **p = bucket_of(t, node->id);

	while (*p != node)
		p = &(*p)->next;
	*p = node->next;
	t->n--;
}

void wfs_table_each(const struct wfs_table *t, void (*fn)(void *ctx, const struct wfs_node *node), void *ctx)
{
	for (size_t i = 0; i < t->n_buckets; i++)
		for (const struct wfs_node *node = t->buckets[i]; node; node = node->next)
			fn(ctx, node);
}
