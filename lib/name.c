#include "lib/name.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/crash.h"
#include "lib/datafile_state.h"
#include "lib/manifest.h"
#include "lib/quota.h"
#include "lib/reserve.h"
#include "lib/store_priv.h"

#define ATTR_COLUMNS 15 /* of WFS_ATTR_COLUMNS */
#define DIRECTORY_SIZE 4096

/* ---- reading rows ---- */

static void read_attr(sqlite3_stmt *row, int col, struct wfs_attr *a)
{
	a->ino = (uint64_t)sqlite3_column_int64(row, col);
	a->mode = (uint32_t)sqlite3_column_int64(row, col + 1);
	a->uid = (uint32_t)sqlite3_column_int64(row, col + 2);
	a->gid = (uint32_t)sqlite3_column_int64(row, col + 3);
	a->nlink = (uint32_t)sqlite3_column_int64(row, col + 4);
	a->rdev = (uint64_t)sqlite3_column_int64(row, col + 5);
	a->size = (uint64_t)sqlite3_column_int64(row, col + 6);
	a->blocks = (uint64_t)sqlite3_column_int64(row, col + 7);
	a->atime_ns = sqlite3_column_int64(row, col + 8);
	a->mtime_ns = sqlite3_column_int64(row, col + 9);
	a->ctime_ns = sqlite3_column_int64(row, col + 10);
	a->btime_ns = sqlite3_column_int64(row, col + 11);
	a->manifest = (uint64_t)sqlite3_column_int64(row, col + 12);
	a->data_file = (uint64_t)sqlite3_column_int64(row, col + 13);
	a->verdict = (enum wfs_verdict)sqlite3_column_int(row, col + 14);
	if (S_ISDIR(a->mode)) {
		a->size = DIRECTORY_SIZE;
		a->blocks = DIRECTORY_SIZE / 512;
	}
}

/*
 * Writers change the staging file and nobody tells the database: it is the
 * truth about a dirty file. Under the database lock, so that no seal comes
 * between the row and this.
 */
static int add_staging(struct wfs_store *s, struct wfs_attr *a)
{
	struct stat st;
	int ret;

	if (!a->data_file)
		return 0;
	ret = wfs_datafile_stat(&s->datafiles, a->data_file, &st);
	if (ret == -ENOENT) /* damaged, or the mount has just lost its store */
		return 0;
	if (ret)
		return ret;
	a->size = (uint64_t)st.st_size;
	a->blocks = (uint64_t)st.st_blocks;
	a->mtime_ns = wfs_ns(&st.st_mtim);
	a->ctime_ns = WFS_MAX(a->ctime_ns, wfs_ns(&st.st_ctim));
	return 0;
}

int wfs_inode_get(struct wfs_store *s, uint64_t ino, struct wfs_attr *ret)
{
	sqlite3_stmt *row;
	int found = wfs_db_first(&s->db, WFS_Q_INODE_GET, &row, "i", ino);

	if (found <= 0)
		return found;
	read_attr(row, 0, ret);
	wfs_db_done(row);
	found = add_staging(s, ret);
	return found ? found : 1;
}

static int get_existing(struct wfs_store *s, uint64_t ino, struct wfs_attr *ret)
{
	int found = wfs_inode_get(s, ino, ret);

	return found < 0 ? found : found ? 0 : -ENOENT;
}

/* A directory that can take and lose names. */
static int get_directory(struct wfs_store *s, uint64_t ino, struct wfs_attr *ret)
{
	int err = get_existing(s, ino, ret);

	if (err)
		return err;
	if (!S_ISDIR(ret->mode))
		return -ENOTDIR;
	return ret->nlink == 0 ? -ENOENT : 0;
}

static int check_name(const char *name)
{
	size_t len = strlen(name);

	if (len > WFS_NAME_MAX)
		return -ENAMETOOLONG;
	if (len == 0 || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
		return -EINVAL;
	return 0;
}

static int lookup_locked(struct wfs_store *s, uint64_t parent, const char *name,
	struct wfs_attr *ret)
{
	sqlite3_stmt *row;
	int found = wfs_db_first(&s->db, WFS_Q_NAME_LOOKUP, &row, "ib", parent, name, strlen(name));

	if (found < 0)
		return found;
	if (found) {
		read_attr(row, 0, ret);
		wfs_db_done(row);
		return add_staging(s, ret);
	}
	return -ENOENT;
}

int wfs_name_lookup(struct wfs_store *s, uint64_t parent, const char *name, struct wfs_attr *ret)
{
	int err = strlen(name) > WFS_NAME_MAX ? -ENAMETOOLONG : wfs_db_begin_read(&s->db);

	if (err)
		return err;
	return wfs_db_end(&s->db, lookup_locked(s, parent, name, ret));
}

int wfs_name_getattr(struct wfs_store *s, uint64_t ino, struct wfs_attr *ret)
{
	int err = wfs_db_begin_read(&s->db);

	return err ? err : wfs_db_end(&s->db, get_existing(s, ino, ret));
}

static int resolve_locked(struct wfs_store *s, const char *path, struct wfs_attr *ret)
{
	int err = get_existing(s, WFS_ROOT_INO, ret);

	while (!err) {
		char name[WFS_NAME_MAX + 1];
		size_t len;

		path += strspn(path, "/");
		len = strcspn(path, "/");
		if (len == 0)
			return 0;
		if (!S_ISDIR(ret->mode))
			return -ENOTDIR;
		if (len > WFS_NAME_MAX)
			return -ENAMETOOLONG;
		memcpy(name, path, len);
		name[len] = '\0';
		path += len;
		if (strcmp(name, ".") != 0)
			err = lookup_locked(s, ret->ino, name, ret);
	}
	return err;
}

int wfs_name_resolve(struct wfs_store *s, const char *path, struct wfs_attr *ret)
{
	int err = wfs_db_begin_read(&s->db);

	return err ? err : wfs_db_end(&s->db, resolve_locked(s, path, ret));
}

/* ---- changing names ---- */

static int touch_directory(struct wfs_store *s, uint64_t dir, int subdirs, int64_t now)
{
	return wfs_db_run(&s->db, WFS_Q_INODE_TOUCH_DIR, "iiii", now, now, (int64_t)subdirs, dir);
}

static int add_links(struct wfs_store *s, uint64_t ino, int links, int64_t now)
{
	return wfs_db_run(&s->db, WFS_Q_INODE_NLINK, "iii", (int64_t)links, now, ino);
}

static int insert_name(struct wfs_store *s, uint64_t parent, const char *name, uint64_t ino)
{
	return wfs_db_run(&s->db, WFS_Q_NAME_INSERT, "ibi", parent, name, strlen(name), ino);
}

/* 1 with the entry's id and inode, 0 or -errno. */
static int find_name(struct wfs_store *s, uint64_t parent, const char *name, uint64_t *ret_id,
	uint64_t *ret_ino)
{
	sqlite3_stmt *row;
	int found = wfs_db_first(&s->db, WFS_Q_NAME_FIND, &row, "ib", parent, name, strlen(name));

	if (found <= 0)
		return found;
	*ret_id = (uint64_t)sqlite3_column_int64(row, 0);
	*ret_ino = (uint64_t)sqlite3_column_int64(row, 1);
	wfs_db_done(row);
	return 1;
}

static int must_be_free(struct wfs_store *s, uint64_t parent, const char *name)
{
	uint64_t id, ino;
	int found = find_name(s, parent, name, &id, &ino);

	return found < 0 ? found : found ? -EEXIST : 0;
}

int wfs_staging_create(struct wfs_store *s, uint64_t state, uint64_t *ret_id)
{
	uint64_t id;
	int ret = wfs_spare_take(s, state, &id);

	if (ret == 0) {
		ret = wfs_db_run(&s->db, WFS_Q_DATA_INSERT, "i", state);
		id = wfs_db_insert_id(&s->db);
	}
	if (ret < 0)
		return ret;
	ret = wfs_datafile_create(&s->datafiles, id);
	if (ret == 0)
		*ret_id = id;
	return ret == -ENOENT ? -EIO : ret; /* data/ is gone: the place, not the name that was asked for */
}

/* A new inode for `new` in directory `dir`. */
static int insert_inode(struct wfs_store *s, const struct wfs_attr *dir, const struct wfs_new *new,
	unsigned links, uint64_t *ret_ino)
{
	int64_t now = wfs_now_ns();
	size_t target_len = new->target ? strlen(new->target) : 0;
	uint32_t gid = dir->mode & S_ISGID ? dir->gid : new->gid;
	uint32_t mode = new->mode;
	uint64_t data_file = 0;
	int ret = 0;

	if (S_ISDIR(mode) && dir->mode & S_ISGID)
		mode |= S_ISGID;
	if (S_ISREG(mode) && !new->sealed)
		ret = wfs_staging_create(s, WFS_DATA_STAGING, &data_file);
	if (ret)
		return ret;
	ret = wfs_db_run(&s->db, WFS_Q_INODE_INSERT, "iiiiiiiiiibo", (uint64_t)mode,
		(uint64_t)new->uid, (uint64_t)gid, (uint64_t)links, new->rdev,
		(uint64_t)target_len, now, now, now, now, new->target, target_len, data_file);
	if (ret == 0)
		*ret_ino = wfs_db_insert_id(&s->db);
	return ret;
}

static int create_locked(struct wfs_store *s, uint64_t parent, const char *name,
	const struct wfs_new *new, struct wfs_attr *ret)
{
	bool is_dir = S_ISDIR(new->mode);
	struct wfs_attr dir;
	uint64_t ino = 0;
	int err = get_directory(s, parent, &dir);

	if (!err)
		err = must_be_free(s, parent, name);
	if (!err)
		err = insert_inode(s, &dir, new, is_dir ? 2 : 1, &ino);
	if (!err)
		err = insert_name(s, parent, name, ino);
	if (!err)
		err = touch_directory(s, parent, is_dir, wfs_now_ns());
	return err ? err : get_existing(s, ino, ret);
}

int wfs_name_create(struct wfs_store *s, uint64_t parent, const char *name,
	const struct wfs_new *new, struct wfs_attr *ret)
{
	int err = check_name(name);

	if (!err && new->target && strlen(new->target) > WFS_SYMLINK_MAX)
		err = -ENAMETOOLONG;
	if (!err)
		err = wfs_quota_take(s, 0);
	if (!err)
		err = wfs_db_begin(&s->db);
	return err ? err : wfs_db_end(&s->db, create_locked(s, parent, name, new, ret));
}

static int create_unnamed_locked(struct wfs_store *s, uint64_t parent, const struct wfs_new *new,
	struct wfs_attr *ret)
{
	struct wfs_attr dir;
	uint64_t ino = 0;
	int err = get_directory(s, parent, &dir);

	if (!err)
		err = insert_inode(s, &dir, new, 0, &ino);
	return err ? err : get_existing(s, ino, ret);
}

int wfs_name_create_unnamed(struct wfs_store *s, uint64_t parent, const struct wfs_new *new,
	struct wfs_attr *ret)
{
	int err = wfs_quota_take(s, 0);

	if (!err)
		err = wfs_db_begin(&s->db);
	return err ? err : wfs_db_end(&s->db, create_unnamed_locked(s, parent, new, ret));
}

static int link_locked(struct wfs_store *s, uint64_t ino, uint64_t parent, const char *name,
	struct wfs_attr *ret)
{
	int64_t now = wfs_now_ns();
	struct wfs_attr dir;
	int err = get_existing(s, ino, ret);

	if (!err)
		err = S_ISDIR(ret->mode) ? -EPERM : get_directory(s, parent, &dir);
	if (!err)
		err = must_be_free(s, parent, name);
	if (!err)
		err = insert_name(s, parent, name, ino);
	if (!err)
		err = add_links(s, ino, 1, now);
	if (!err)
		err = touch_directory(s, parent, 0, now);
	return err ? err : get_existing(s, ino, ret);
}

int wfs_name_link(struct wfs_store *s, uint64_t ino, uint64_t parent, const char *name,
	struct wfs_attr *ret)
{
	int err = check_name(name);

	if (!err)
		err = wfs_db_begin(&s->db);
	return err ? err : wfs_db_end(&s->db, link_locked(s, ino, parent, name, ret));
}

/* ---- removing names ---- */

/* Can a directory be removed or replaced? */
static int must_be_empty(struct wfs_store *s, uint64_t dir)
{
	uint64_t one;
	int found = wfs_db_number(&s->db, WFS_Q_NAME_ANY, &one, "i", dir);

	return found < 0 ? found : found ? -ENOTEMPTY : 0;
}

/* The inode behind a name that is going away; its directory's nlink, too. */
static int lose_name(struct wfs_store *s, const struct wfs_attr *child, uint64_t parent,
	int64_t now)
{
	bool is_dir = S_ISDIR(child->mode);
	int err = add_links(s, child->ino, is_dir ? -2 : -1, now);

	return err ? err : touch_directory(s, parent, is_dir ? -1 : 0, now);
}

static int unlink_locked(struct wfs_store *s, uint64_t parent, const char *name, bool want_dir,
	struct wfs_attr *child)
{
	uint64_t id;
	int err = find_name(s, parent, name, &id, &child->ino);

	if (err <= 0)
		return err ? err : -ENOENT;
	err = get_existing(s, child->ino, child);
	if (!err && S_ISDIR(child->mode) != want_dir)
		err = want_dir ? -ENOTDIR : -EISDIR;
	if (!err && want_dir)
		err = must_be_empty(s, child->ino);
	if (!err)
		err = wfs_db_run(&s->db, WFS_Q_NAME_DELETE, "i", id);
	return err ? err : lose_name(s, child, parent, wfs_now_ns());
}

/* A full disk does not prevent it: lib/reserve.h. */
static int remove_name(struct wfs_store *s, uint64_t parent, const char *name, bool want_dir,
	struct wfs_attr *child)
{
	int err, tries = 0;

	do {
		err = wfs_db_begin(&s->db);
		if (!err)
			err = wfs_db_end(&s->db, unlink_locked(s, parent, name, want_dir, child));
	} while (err == -ENOSPC && wfs_reserve_make_room(s, &tries));
	return err;
}

int wfs_name_unlink(struct wfs_store *s, uint64_t parent, const char *name, uint64_t *ret_ino,
	bool *ret_gone)
{
	struct wfs_attr child;
	int err;

	wfs_crash_at("unlink-before-commit");
	err = remove_name(s, parent, name, false, &child);
	wfs_crash_at("unlink-after-commit");
	if (err)
		return err;
	*ret_ino = child.ino;
	*ret_gone = child.nlink <= 1;
	return 0;
}

int wfs_name_rmdir(struct wfs_store *s, uint64_t parent, const char *name, uint64_t *ret_ino)
{
	struct wfs_attr child;
	int err = remove_name(s, parent, name, true, &child);

	if (!err)
		*ret_ino = child.ino;
	return err;
}

static int drop_one(struct wfs_store *s, uint64_t ino)
{
	struct wfs_attr a;
	int ret = wfs_inode_get(s, ino, &a);

	if (ret <= 0 || a.nlink > 0)
		return ret < 0 ? ret : 0;
	ret = wfs_db_run(&s->db, WFS_Q_XATTR_DELETE, "i", ino);
	if (ret == 0)
		ret = wfs_db_run(&s->db, WFS_Q_INODE_DELETE, "i", ino);
	if (ret == 0 && a.manifest)
		ret = wfs_manifest_unref(&s->db, a.manifest);
	if (ret == 0 && a.data_file)
		ret = wfs_db_run(&s->db, WFS_Q_DATA_STATE, "ii", (uint64_t)WFS_DATA_DOOMED,
			a.data_file);
	return ret;
}

static int drop_all(struct wfs_store *s, const uint64_t *inos, size_t n)
{
	int ret = wfs_db_begin(&s->db);

	if (ret)
		return ret;
	for (size_t i = 0; i < n && ret == 0; i++)
		ret = drop_one(s, inos[i]);
	return wfs_db_end(&s->db, ret);
}

int wfs_name_drop(struct wfs_store *s, const uint64_t *inos, size_t n)
{
	int ret, tries = 0;

	do
		ret = drop_all(s, inos, n);
	while (ret == -ENOSPC && wfs_reserve_make_room(s, &tries));
	wfs_crash_at("drop-after-commit");
	if (ret == 0)
		atomic_store(&s->collect_wanted, true);
	return ret;
}

/* ---- rename ---- */

struct rename {
	uint64_t parent, new_parent;
	uint64_t id, new_id;           /* entries; new_id 0: no such name yet */
	struct wfs_attr moved, target; /* target only with new_id */
	const char *new_name;
	int64_t now;
};

static int find_both(struct wfs_store *s, struct rename *r, const char *name)
{
	uint64_t ino;
	int found = find_name(s, r->parent, name, &r->id, &ino);

	if (found > 0)
		found = get_existing(s, ino, &r->moved);
	else if (found == 0)
		found = -ENOENT;
	if (found < 0)
		return found;
	found = find_name(s, r->new_parent, r->new_name, &r->new_id, &ino);
	if (found == 0)
		r->new_id = 0;
	return found > 0 ? get_existing(s, ino, &r->target) : found;
}

static int check_replace(struct wfs_store *s, const struct rename *r)
{
	if (S_ISDIR(r->moved.mode) && !S_ISDIR(r->target.mode))
		return -ENOTDIR;
	if (!S_ISDIR(r->moved.mode) && S_ISDIR(r->target.mode))
		return -EISDIR;
	return S_ISDIR(r->target.mode) ? must_be_empty(s, r->target.ino) : 0;
}

static int check_below(struct wfs_store *s, const struct wfs_attr *moved, uint64_t new_parent)
{
	int below = S_ISDIR(moved->mode) ? wfs_name_is_below(s, new_parent, moved->ino) : 0;

	return below > 0 ? -EINVAL : below;
}

/* The moved directory's ".." now counts for another parent. */
static int move_subdir(struct wfs_store *s, const struct wfs_attr *moved, uint64_t from,
	uint64_t to, int64_t now)
{
	int subdir = S_ISDIR(moved->mode) && from != to ? 1 : 0;
	int err = touch_directory(s, from, -subdir, now);

	return err ? err : touch_directory(s, to, subdir, now);
}

static int exchange(struct wfs_store *s, struct rename *r)
{
	int err = check_below(s, &r->moved, r->new_parent);

	if (!err)
		err = check_below(s, &r->target, r->parent);
	if (!err)
		err = wfs_db_run(&s->db, WFS_Q_NAME_SET_INO, "ii", r->target.ino, r->id);
	if (!err)
		err = wfs_db_run(&s->db, WFS_Q_NAME_SET_INO, "ii", r->moved.ino, r->new_id);
	if (!err)
		err = move_subdir(s, &r->moved, r->parent, r->new_parent, r->now);
	if (!err)
		err = move_subdir(s, &r->target, r->new_parent, r->parent, r->now);
	if (!err)
		err = add_links(s, r->target.ino, 0, r->now);
	return err ? err : add_links(s, r->moved.ino, 0, r->now);
}

static int move(struct wfs_store *s, struct rename *r)
{
	int err = check_below(s, &r->moved, r->new_parent);

	if (!err && r->new_id)
		err = check_replace(s, r);
	if (!err && r->new_id)
		err = lose_name(s, &r->target, r->new_parent, r->now);
	if (!err)
		err = wfs_db_run(&s->db, WFS_Q_NAME_DELETE, "i", r->id);
	if (!err && r->new_id)
		err = wfs_db_run(&s->db, WFS_Q_NAME_SET_INO, "ii", r->moved.ino, r->new_id);
	else if (!err)
		err = insert_name(s, r->new_parent, r->new_name, r->moved.ino);
	if (!err)
		err = move_subdir(s, &r->moved, r->parent, r->new_parent, r->now);
	return err ? err : add_links(s, r->moved.ino, 0, r->now);
}

static int rename_locked(struct wfs_store *s, struct rename *r, const char *name, unsigned flags,
	struct wfs_renamed *ret)
{
	struct wfs_attr dir;
	int err = get_directory(s, r->new_parent, &dir);

	if (!err)
		err = find_both(s, r, name);
	if (err)
		return err;
	ret->ino = r->moved.ino;
	if (flags & RENAME_EXCHANGE) {
		ret->replaced = r->target.ino;
		return r->new_id ? exchange(s, r) : -ENOENT;
	}
	if (r->new_id && flags & RENAME_NOREPLACE)
		return -EEXIST;
	/* Two names of one inode: POSIX has rename do nothing. */
	if (r->new_id && r->target.ino == r->moved.ino)
		return 0;
	if (r->new_id) {
		ret->replaced = r->target.ino;
		ret->replaced_gone = S_ISDIR(r->target.mode) || r->target.nlink <= 1;
	}
	return move(s, r);
}

int wfs_name_rename(struct wfs_store *s, uint64_t parent, const char *name, uint64_t new_parent,
	const char *new_name, unsigned flags, struct wfs_renamed *ret)
{
	struct rename r = { .parent = parent, .new_parent = new_parent, .new_name = new_name,
		.now = wfs_now_ns() };
	int err = check_name(new_name);

	*ret = (struct wfs_renamed){ 0, 0, false };
	wfs_crash_at("rename-before-commit");
	if (!err && flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE))
		err = -EINVAL;
	if (!err)
		err = wfs_db_begin(&s->db);
	if (!err)
		err = wfs_db_end(&s->db, rename_locked(s, &r, name, flags, ret));
	wfs_crash_at("rename-after-commit");
	return err;
}

/* ---- directories ---- */

struct listing {
	struct wfs_dirent *entries;
	size_t n;
};

static void free_listing(struct listing *l)
{
	for (size_t i = 0; i < l->n; i++)
		free((char *)l->entries[i].name);
	free(l->entries);
}

static int read_entry(struct wfs_store *s, sqlite3_stmt *row, bool want_attr, struct wfs_dirent *e)
{
	const void *name = sqlite3_column_blob(row, 1);

	e->id = (uint64_t)sqlite3_column_int64(row, 0);
	read_attr(row, 2, &e->attr);
	e->ino = e->attr.ino;
	e->mode = e->attr.mode;
	e->name = name ? strndup(name, (size_t)sqlite3_column_bytes(row, 1)) : strdup("");
	if (!e->name)
		return -ENOMEM;
	return want_attr ? add_staging(s, &e->attr) : 0;
}

static int list_locked(struct wfs_store *s, uint64_t dir, uint64_t after, size_t max,
	bool want_attr, struct listing *l)
{
	sqlite3_stmt *row;
	int more;

	for (more = wfs_db_first(&s->db, WFS_Q_READDIR, &row, "iii", dir, after, (uint64_t)max);
		more > 0; more = wfs_db_next(&s->db, row)) {
		int err = read_entry(s, row, want_attr, &l->entries[l->n]);

		l->n += l->entries[l->n].name != NULL;
		if (err) {
			wfs_db_done(row);
			return err;
		}
	}
	return more;
}

int wfs_name_readdir(struct wfs_store *s, uint64_t dir, uint64_t after, size_t max, bool want_attr,
	int (*fn)(void *ctx, const struct wfs_dirent *entry), void *ctx)
{
	struct listing l = { calloc(max, sizeof(*l.entries)), 0 };
	int ret = l.entries ? wfs_db_begin_read(&s->db) : -ENOMEM;

	if (ret == 0)
		ret = wfs_db_end(&s->db, list_locked(s, dir, after, max, want_attr, &l));
	for (size_t i = 0; i < l.n && ret == 0; i++)
		ret = fn(ctx, &l.entries[i]);
	free_listing(&l);
	return ret;
}
