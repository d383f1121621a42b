#include "fs/inode.h"

#include <errno.h>
#include <string.h>

#define FIRST_SIZE 1024

int wfs_inodes_init(struct wfs_inodes *t)
{
	t->n = 0;
	t->n_buckets = FIRST_SIZE;
	t->buckets = calloc(FIRST_SIZE, sizeof(*t->buckets));
	pthread_mutex_init(&t->lock, NULL);
	return t->buckets ? 0 : -ENOMEM;
}

void wfs_inodes_release(struct wfs_inodes *t)
{
	for (size_t i = 0; t->buckets && i < t->n_buckets; i++) {
		while (t->buckets[i]) {
			struct wfs_inode_node *node = t->buckets[i];

			t->buckets[i] = node->next;
			wfs_tensor_place_release(&node->tensor);
			free(node);
		}
	}
	free(t->buckets);
	pthread_mutex_destroy(&t->lock);
}

static struct wfs_inode_node **slot_of(struct wfs_inodes *t, uint64_t ino)
{
	struct wfs_inode_node **p = &t->buckets[ino & (t->n_buckets - 1)];

	while (*p && (*p)->ino != ino)
		p = &(*p)->next;
	return p;
}

/* Twice as many buckets; without memory the chains just get longer. */
static void grow(struct wfs_inodes *t)
{
	size_t size = 2 * t->n_buckets;
	struct wfs_inode_node **buckets = calloc(size, sizeof(*buckets));

	if (!buckets)
		return;
	for (size_t i = 0; i < t->n_buckets; i++) {
		while (t->buckets[i]) {
			struct wfs_inode_node *node = t->buckets[i];

			t->buckets[i] = node->next;
			node->next = buckets[node->ino & (size - 1)];
			buckets[node->ino & (size - 1)] = node;
		}
	}
	free(t->buckets);
	t->buckets = buckets;
	t->n_buckets = size;
}

static int insert(struct wfs_inodes *t, struct wfs_inode_node **slot, uint64_t ino)
{
	struct wfs_inode_node *node = calloc(1, sizeof(*node));

	if (!node)
		return -ENOMEM;
	node->ino = ino;
	node->nlookup = 1;
	*slot = node;
	if (++t->n > t->n_buckets)
		grow(t);
	return 0;
}

int wfs_inodes_lookup(struct wfs_inodes *t, uint64_t ino)
{
	struct wfs_inode_node **slot;
	int ret = 0;

	pthread_mutex_lock(&t->lock);
	slot = slot_of(t, ino);
	if (*slot)
		(*slot)->nlookup++;
	else
		ret = insert(t, slot, ino);
	pthread_mutex_unlock(&t->lock);
	return ret;
}

bool wfs_inodes_forget(struct wfs_inodes *t, uint64_t ino, uint64_t n)
{
	struct wfs_inode_node **slot, *node;
	bool drop = false;

	pthread_mutex_lock(&t->lock);
	slot = slot_of(t, ino);
	node = *slot;
	if (node) {
		node->nlookup -= n < node->nlookup ? n : node->nlookup;
		if (node->nlookup == 0) {
			drop = node->gone;
			*slot = node->next;
			t->n--;
		} else {
			node = NULL;
		}
	}
	pthread_mutex_unlock(&t->lock);
	if (node)
		wfs_tensor_place_release(&node->tensor);
	free(node);
	return drop;
}

bool wfs_inodes_set_gone(struct wfs_inodes *t, uint64_t ino, bool gone)
{
	struct wfs_inode_node *node;

	pthread_mutex_lock(&t->lock);
	node = *slot_of(t, ino);
	if (node)
		node->gone = gone;
	pthread_mutex_unlock(&t->lock);
	return !node && gone;
}

void wfs_tensor_place_release(struct wfs_tensor_place *p)
{
	free(p->variant);
	free(p->name);
	*p = (struct wfs_tensor_place){.name = NULL};
}

static int copy_place(const struct wfs_tensor_place *from, struct wfs_tensor_place *ret)
{
	struct wfs_tensor_place copy = {.dir = from->dir,
		.variant = from->variant ? strdup(from->variant) : NULL,
		.name = strdup(from->name)};

	if (!copy.name || !copy.variant != !from->variant) {
		wfs_tensor_place_release(&copy);
		return -ENOMEM;
	}
	*ret = copy;
	return 0;
}

void wfs_inodes_set_tensor(
	struct wfs_inodes *t, uint64_t ino, uint64_t dir, const char *variant, const char *name)
{
	const struct wfs_tensor_place place = {dir, (char *)variant, (char *)name};
	struct wfs_tensor_place copy;
	struct wfs_inode_node *node;

	if (copy_place(&place, &copy) != 0)
		return; /* then it cannot be opened to be written again: fs/view_write.c */
	pthread_mutex_lock(&t->lock);
	node = *slot_of(t, ino);
	if (node) {
		wfs_tensor_place_release(&node->tensor);
		node->tensor = copy;
	}
	pthread_mutex_unlock(&t->lock);
	if (!node)
		wfs_tensor_place_release(&copy);
}

int wfs_inodes_get_tensor(struct wfs_inodes *t, uint64_t ino, struct wfs_tensor_place *ret)
{
	const struct wfs_inode_node *node;
	int found = 0;

	pthread_mutex_lock(&t->lock);
	node = *slot_of(t, ino);
	if (node && node->tensor.name)
		found = copy_place(&node->tensor, ret) == 0 ? 1 : -ENOMEM;
	pthread_mutex_unlock(&t->lock);
	return found;
}

void wfs_inodes_set_stale(struct wfs_inodes *t, uint64_t ino)
{
	struct wfs_inode_node *node;

	pthread_mutex_lock(&t->lock);
	node = *slot_of(t, ino);
	if (node)
		node->stale = true;
	pthread_mutex_unlock(&t->lock);
}

bool wfs_inodes_take_stale(struct wfs_inodes *t, uint64_t ino)
{
	struct wfs_inode_node *node;
	bool stale = false;

	pthread_mutex_lock(&t->lock);
	node = *slot_of(t, ino);
	if (node) {
		stale = node->stale;
		node->stale = false;
	}
	pthread_mutex_unlock(&t->lock);
	return stale;
}
