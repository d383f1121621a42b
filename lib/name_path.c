/* lib/name.h: from an inode up to the root. */
#include <errno.h>
#include <string.h>

#include "lib/name.h"
#include "lib/store_priv.h"

/* 1 and one (parent, name) of an inode; *ret_name is the caller's, NULL: not wanted. */
static int name_of(struct wfs_store *s, uint64_t ino, uint64_t *ret_parent, char **ret_name)
{
	sqlite3_stmt *row;
	int found = wfs_db_first(&s->db, WFS_Q_NAME_OF, &row, "i", ino);

	if (found <= 0)
		return found;
	*ret_parent = (uint64_t)sqlite3_column_int64(row, 0);
	if (ret_name) {
		const void *name = sqlite3_column_blob(row, 1);
		size_t len = (size_t)sqlite3_column_bytes(row, 1);

		*ret_name = name ? strndup(name, len) : strdup("");
		if (!*ret_name)
			found = -ENOMEM;
	}
	wfs_db_done(row);
	return found;
}

/* A path that is put together from its end. */
struct tail {
	char *buf;
	size_t room, used; /* the last `used` bytes of buf */
};

static int prepend(struct tail *t, const char *name)
{
	size_t len = strlen(name) + 1;
	char *at;

	if (t->room - t->used < len) {
		size_t room = 2 * t->room + len;
		char *grown = malloc(room);

		if (!grown)
			return -ENOMEM;
		memcpy(grown + room - t->used, t->buf + t->room - t->used, t->used);
		free(t->buf);
		t->buf = grown;
		t->room = room;
	}
	t->used += len;
	at = t->buf + t->room - t->used;
	at[0] = '/';
	memcpy(at + 1, name, len - 1);
	return 0;
}

/* Deeper than any path that a system call takes. */
#define MAX_DEPTH 100000

/* Has `ino` been seen before? By Brent: compared with one before it, chosen ever more rarely. */
struct circle {
	uint64_t seen;
	unsigned steps, limit;
};

static bool goes_round(struct circle *c, uint64_t ino)
{
	if (ino == c->seen)
		return true;
	if (++c->steps >= c->limit)
		*c = (struct circle){ ino, 0, 2 * c->limit };
	return false;
}

/* Empty where the names do not lead to the root. */
static int path_locked(struct wfs_store *s, uint64_t ino, struct tail *path)
{
	struct circle circle = { ino, 0, 1 };

	for (unsigned depth = 0; ino != WFS_ROOT_INO; depth++) {
		WFS_AUTO_FREE char *name = NULL;
		int found = name_of(s, ino, &ino, &name);

		if (found < 0)
			return found;
		if (found == 0 || depth > MAX_DEPTH || goes_round(&circle, ino)) {
			path->used = 1;
			return 0;
		}
		found = prepend(path, name);
		if (found < 0)
			return found;
	}
	return 0;
}

/* In what was begun with `err`; ends it. */
static int find_path(struct wfs_store *s, uint64_t ino, int err, char **ret)
{
	struct tail path = { err ? NULL : calloc(1, 256), 256, 1 };

	if (err)
		return err;
	err = wfs_db_end(&s->db, path.buf ? path_locked(s, ino, &path) : -ENOMEM);
	if (!err)
		*ret = strdup(path.buf + path.room - path.used);
	if (!err && !*ret)
		err = -ENOMEM;
	free(path.buf);
	return err;
}

int wfs_name_path(struct wfs_store *s, uint64_t ino, char **ret)
{
	return find_path(s, ino, wfs_db_begin_read(&s->db), ret);
}

int wfs_name_try_path(struct wfs_store *s, uint64_t ino, char **ret)
{
	return find_path(s, ino, wfs_db_try_begin_read(&s->db), ret);
}

static int parent_locked(struct wfs_store *s, uint64_t ino, uint64_t *ret)
{
	int found;

	*ret = WFS_ROOT_INO;
	if (ino == WFS_ROOT_INO)
		return 0;
	found = name_of(s, ino, ret, NULL);
	return found < 0 ? found : found ? 0 : -ENOENT;
}

int wfs_name_parent(struct wfs_store *s, uint64_t ino, uint64_t *ret)
{
	int err = wfs_db_begin_read(&s->db);

	return err ? err : wfs_db_end(&s->db, parent_locked(s, ino, ret));
}

/* Is `dir` the directory `ancestor`, or somewhere below it? */
int wfs_name_is_below(struct wfs_store *s, uint64_t dir, uint64_t ancestor)
{
	for (unsigned depth = 0; depth <= MAX_DEPTH; depth++) {
		int err;

		if (dir == ancestor)
			return 1;
		if (dir == WFS_ROOT_INO)
			return 0;
		err = parent_locked(s, dir, &dir);
		if (err)
			return err;
	}
	return -EUCLEAN;
}
