/* lib/name.h: what a symbolic link leads to within the store. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/name.h"
#include "lib/store_priv.h"

#define MOST_LINKS 40 /* as Linux */

/* What is still to be walked, and from where. */
struct walk {
	uint64_t dir;
	char *rest; /* owned */
	unsigned links;
};

/* A link in the way: what it says comes before what is left. */
static int take_link(struct wfs_store *s, struct walk *w, const struct wfs_attr *link, const char *left)
{
	WFS_AUTO_FREE char *target = NULL;
	size_t len, left_len = strlen(left);
	char *joined;
	int err;

	if (++w->links > MOST_LINKS)
		return -ELOOP;
	err = wfs_name_readlink(s, link->ino, &target);
	if (err)
		return err;
	if (target[0] == '/' || target[0] == '\0')
		return -ENOENT; /* where that is only the kernel knows */
	len = strlen(target);
	joined = malloc(len + left_len + 2);
	if (!joined)
		return -ENOMEM;
	memcpy(joined, target, len);
	joined[len] = '/';
	memcpy(joined + len + 1, left, left_len + 1);
	free(w->rest);
	w->rest = joined;
	return 0;
}

/* One component, `len` bytes at the start of w->rest. Not above the root: what is there is not in
 * the store. */
static int step(struct wfs_store *s, struct walk *w, size_t len, struct wfs_attr *ret)
{
	char name[WFS_NAME_MAX + 1];
	uint64_t parent;
	int err;

	if (len > WFS_NAME_MAX)
		return -ENAMETOOLONG;
	memcpy(name, w->rest, len);
	name[len] = '\0';
	if (strcmp(name, "..") != 0)
		return strcmp(name, ".") == 0 ? wfs_name_getattr(s, w->dir, ret)
					      : wfs_name_lookup(s, w->dir, name, ret);
	if (w->dir == WFS_ROOT_INO)
		return -ENOENT;
	err = wfs_name_parent(s, w->dir, &parent);
	return err ? err : wfs_name_getattr(s, parent, ret);
}

/* Who looks is not known here: of several users, what is closed to one may not be open to the other. */
static bool may_search(const struct wfs_store *s, const struct wfs_attr *dir)
{
	return !s->options.has_many_users || dir->mode & S_IXOTH;
}

static int walk(struct wfs_store *s, struct walk *w, struct wfs_attr *ret)
{
	for (;;) {
		size_t len = strcspn(w->rest, "/");
		size_t skip = len + strspn(w->rest + len, "/");
		int err = step(s, w, len, ret);

		if (err)
			return err;
		if (S_ISLNK(ret->mode)) {
			err = take_link(s, w, ret, w->rest + skip);
			if (err)
				return err;
			continue;
		}
		if (w->rest[skip] == '\0')
			return 0;
		if (!S_ISDIR(ret->mode))
			return -ENOTDIR;
		if (!may_search(s, ret))
			return -EACCES;
		w->dir = ret->ino;
		memmove(w->rest, w->rest + skip, strlen(w->rest + skip) + 1);
	}
}

int wfs_name_follow(struct wfs_store *s, uint64_t parent, const char *name, struct wfs_attr *ret)
{
	struct walk w = { .dir = parent, .rest = strdup(name) };
	int err = w.rest ? walk(s, &w, ret) : -ENOMEM;

	free(w.rest);
	return err;
}

bool wfs_follow_finds_nothing(int err)
{
	return err == -ENOENT || err == -ELOOP || err == -ENOTDIR || err == -EACCES ||
	       err == -ENAMETOOLONG || err == -EINVAL;
}
