/*
 * table.h - nodes by a number of 64 bits: a hash table that grows with them.
 *
 * A node begins with a struct wfs_node and belongs to the caller. Look-ups take the same time however
 * many there are. Numbers are taken as they are: ones that are given out in order, or hashes. No
 * locks: the caller's.
 */
#ifndef WFS_TABLE_H
#define WFS_TABLE_H

#include "lib/base.h"

struct wfs_node {
	uint64_t id;
	struct wfs_node *next; /* in its bucket; the table's */
};

struct wfs_table {
	struct wfs_node **buckets;
	size_t n_buckets; /* a power of two */
	size_t n;         /* nodes */
};

/* 0 or -ENOMEM: then there is nothing to release, though that may be called. */
int wfs_table_init(struct wfs_table *t) WFS_WARN_UNUSED;
/* Calls `free_node` for each that is left. */
void wfs_table_release(struct wfs_table *t, void (*free_node)(struct wfs_node *node));

/* NULL: there is none. */
struct wfs_node *wfs_table_find(const struct wfs_table *t, uint64_t id);
/* node->id is set, and no node in the table has it. */
void wfs_table_add(struct wfs_table *t, struct wfs_node *node);
/* Take it out, which it is in; it is the caller's to free. */
void wfs_table_remove(struct wfs_table *t, struct wfs_node *node);
/* All of them, in any order; `fn` changes nothing in the table. */
void wfs_table_each(const struct wfs_table *t, void (*fn)(void *ctx, const struct wfs_node *node), void *ctx);

#endif
