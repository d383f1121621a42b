#include "fs/inode.h"

#include <errno.h>
#include <string.h>

struct inode {
	struct wfs_node node;           /* id: its number */
	uint64_t nlookup;               /* > 0 */
	bool gone;                      /* its last name was removed */
	struct wfs_tensor_place tensor; /* name NULL: it never stood there */
	bool stale;                     /* the kernel's cached pages are not what the file holds */
};

int wfs_inodes_init(struct wfs_inodes *t)
{
	pthread_mutex_init(&t->lock, NULL);
	return wfs_table_init(&t->table);
}

static void free_inode(struct wfs_node *node)
{
	struct inode *inode = (struct inode *)node;

	wfs_tensor_place_release(&inode->tensor);
	free(inode);
}

void wfs_inodes_release(struct wfs_inodes *t)
{
	wfs_table_release(&t->table, free_inode);
	pthread_mutex_destroy(&t->lock);
}

static struct inode *find(struct wfs_inodes *t, uint64_t ino)
{
	return (struct inode *)wfs_table_find(&t->table, ino);
}

static int add(struct wfs_inodes *t, uint64_t ino)
{
	struct inode *inode = calloc(1, sizeof(*inode));

	if (!inode)
		return -ENOMEM;
	inode->node.id = ino;
	inode->nlookup = 1;
	wfs_table_add(&t->table, &inode->node);
	return 0;
}

int wfs_inodes_lookup(struct wfs_inodes *t, uint64_t ino)
{
	struct inode *inode;
	int ret = 0;

	pthread_mutex_lock(&t->lock);
	inode = find(t, ino);
	if (inode)
		inode->nlookup++;
	else
		ret = add(t, ino);
	pthread_mutex_unlock(&t->lock);
	return ret;
}

bool wfs_inodes_forget(struct wfs_inodes *t, uint64_t ino, uint64_t n)
{
	struct inode *inode;
	bool drop = false;

	pthread_mutex_lock(&t->lock);
	inode = find(t, ino);
	if (inode)
		inode->nlookup -= WFS_MIN(n, inode->nlookup);
	if (inode && inode->nlookup == 0) {
		drop = inode->gone;
		wfs_table_remove(&t->table, &inode->node);
	} else {
		inode = NULL;
	}
	pthread_mutex_unlock(&t->lock);
	if (inode)
		free_inode(&inode->node);
	return drop;
}

bool wfs_inodes_set_gone(struct wfs_inodes *t, uint64_t ino, bool gone)
{
	struct inode *inode;

	pthread_mutex_lock(&t->lock);
	inode = find(t, ino);
	if (inode)
		inode->gone = gone;
	pthread_mutex_unlock(&t->lock);
	return !inode && gone;
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
	struct inode *inode;

	if (copy_place(&place, &copy) != 0)
		return; /* then it cannot be opened to be written again: fs/view_write.c */
	pthread_mutex_lock(&t->lock);
	inode = find(t, ino);
	if (inode) {
		wfs_tensor_place_release(&inode->tensor);
		inode->tensor = copy;
	}
	pthread_mutex_unlock(&t->lock);
	if (!inode)
		wfs_tensor_place_release(&copy);
}

int wfs_inodes_get_tensor(struct wfs_inodes *t, uint64_t ino, struct wfs_tensor_place *ret)
{
	const struct inode *inode;
	int found = 0;

	pthread_mutex_lock(&t->lock);
	inode = find(t, ino);
	if (inode && inode->tensor.name)
		found = copy_place(&inode->tensor, ret) == 0 ? 1 : -ENOMEM;
	pthread_mutex_unlock(&t->lock);
	return found;
}

void wfs_inodes_set_stale(struct wfs_inodes *t, uint64_t ino)
{
	struct inode *inode;

	pthread_mutex_lock(&t->lock);
	inode = find(t, ino);
	if (inode)
		inode->stale = true;
	pthread_mutex_unlock(&t->lock);
}

bool wfs_inodes_take_stale(struct wfs_inodes *t, uint64_t ino)
{
	struct inode *inode;
	bool stale = false;

	pthread_mutex_lock(&t->lock);
	inode = find(t, ino);
	if (inode) {
		stale = inode->stale;
		inode->stale = false;
	}
	pthread_mutex_unlock(&t->lock);
	return stale;
}
