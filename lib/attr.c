/* Attributes of inodes that are not their content: the second half of lib/name.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "lib/damage.h"
#include "lib/format.h"
#include "lib/name.h"
#include "lib/quota.h"
#include "lib/size_text.h"
#include "lib/store_priv.h"

#define RESERVED_PREFIX "user.weightfs."
#define ERROR_XATTR RESERVED_PREFIX "error"
#define XATTR_NAME_MAX_BYTES 255

/* ---- attributes ---- */

const char *wfs_verdict_name(enum wfs_verdict verdict)
{
	static const char *const names[] = {
		[WFS_VERDICT_NONE] = "none",
		[WFS_VERDICT_VALID] = "valid",
		[WFS_VERDICT_OPAQUE] = "opaque",
		[WFS_VERDICT_INCOMPLETE] = "incomplete",
		[WFS_VERDICT_WRONG] = "wrong",
		[WFS_VERDICT_DAMAGED] = "damaged",
	};

	return (size_t)verdict < WFS_ARRAY_SIZE(names) ? names[verdict] : "unknown";
}

static void merge(struct wfs_attr *a, unsigned set, const struct wfs_attr *want)
{
	int64_t now = wfs_now_ns();

	if (set & WFS_SET_MODE)
		a->mode = (a->mode & S_IFMT) | (want->mode & 07777);
	if (set & WFS_SET_UID)
		a->uid = want->uid;
	if (set & WFS_SET_GID)
		a->gid = want->gid;
	if (set & WFS_SET_ATIME)
		a->atime_ns = want->atime_ns;
	if (set & WFS_SET_ATIME_NOW)
		a->atime_ns = now;
	if (set & WFS_SET_MTIME)
		a->mtime_ns = want->mtime_ns;
	if (set & WFS_SET_MTIME_NOW)
		a->mtime_ns = now;
	a->ctime_ns = now;
}

/* The staging file's mtime is what counts while the file is dirty. */
static int set_staging_mtime(struct wfs_store *s, const struct wfs_attr *a)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, wfs_timespec(a->mtime_ns) };

	return wfs_datafile_utimens(&s->datafiles, a->data_file, times);
}

static int setattr_locked(struct wfs_store *s, uint64_t ino, unsigned set,
	const struct wfs_attr *want, struct wfs_attr *ret)
{
	int err = wfs_inode_get(s, ino, ret);

	if (err <= 0)
		return err ? err : -ENOENT;
	merge(ret, set, want);
	err = wfs_db_run(&s->db, WFS_Q_INODE_SET, "iiiiiii", (uint64_t)ret->mode,
		(uint64_t)ret->uid, (uint64_t)ret->gid, ret->atime_ns, ret->mtime_ns,
		ret->ctime_ns, ino);
	if (!err && ret->data_file && set & (WFS_SET_MTIME | WFS_SET_MTIME_NOW))
		err = set_staging_mtime(s, ret);
	if (err)
		return err;
	err = wfs_inode_get(s, ino, ret);
	return err < 0 ? err : 0;
}

int wfs_name_setattr(struct wfs_store *s, uint64_t ino, unsigned set, const struct wfs_attr *attr,
	struct wfs_attr *ret)
{
	int err = wfs_db_begin(&s->db);

	return err ? err : wfs_db_end(&s->db, setattr_locked(s, ino, set, attr, ret));
}

static int copy_blob(sqlite3_stmt *row, int col, void **ret, size_t *ret_size)
{
	size_t size = (size_t)sqlite3_column_bytes(row, col);
	char *copy = malloc(size + 1);

	if (!copy)
		return -ENOMEM;
	if (size)
		memcpy(copy, sqlite3_column_blob(row, col), size);
	copy[size] = '\0';
	*ret = copy;
	*ret_size = size;
	return 0;
}

static int readlink_locked(struct wfs_store *s, uint64_t ino, char **ret)
{
	sqlite3_stmt *row;
	void *target = NULL;
	size_t size;
	int err = wfs_db_first(&s->db, WFS_Q_INODE_TARGET, &row, "i", ino);

	if (err <= 0)
		return err ? err : -ENOENT;
	err = sqlite3_column_type(row, 0) == SQLITE_NULL ? -EINVAL
							 : copy_blob(row, 0, &target, &size);
	wfs_db_done(row);
	*ret = target;
	return err;
}

int wfs_name_readlink(struct wfs_store *s, uint64_t ino, char **ret)
{
	int err = wfs_db_begin_read(&s->db);

	return err ? err : wfs_db_end(&s->db, readlink_locked(s, ino, ret));
}

/* ---- extended attributes ---- */

static int check_xattr_name(const char *name)
{
	static const char *const spaces[] = { "user.", "trusted.", "security." };

	if (strlen(name) > XATTR_NAME_MAX_BYTES)
		return -ERANGE;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(spaces); i++)
		if (strncmp(name, spaces[i], strlen(spaces[i])) == 0)
			return 0;
	return -EOPNOTSUPP;
}

/* Also says whether a change of it is allowed. */
static int check_xattr_change(const char *name)
{
	int err = check_xattr_name(name);

	if (!err && strcmp(name, WFS_XATTR_MAX_SHARD_SIZE) == 0)
		return 0;
	if (!err && strncmp(name, RESERVED_PREFIX, strlen(RESERVED_PREFIX)) == 0)
		err = -EPERM;
	return err;
}

/* 1 if there, 0, -errno. */
static int has_xattr(struct wfs_store *s, uint64_t ino, const char *name)
{
	sqlite3_stmt *row;
	int found = wfs_db_first(&s->db, WFS_Q_XATTR_GET, &row, "ib", ino, name, strlen(name));

	if (found > 0)
		wfs_db_done(row);
	return found;
}

static int touch(struct wfs_store *s, uint64_t ino)
{
	return wfs_db_run(&s->db, WFS_Q_INODE_CTIME, "ii", wfs_now_ns(), ino);
}

/* Of a directory alone, and a size as people write it. */
static int check_shard_size(struct wfs_store *s, uint64_t ino, const void *value, size_t size)
{
	WFS_AUTO_FREE char *text = strndup(value, size);
	struct wfs_attr a;
	uint64_t bytes;
	int found = text ? wfs_inode_get(s, ino, &a) : -ENOMEM;

	if (found <= 0)
		return found ? found : -ENOENT;
	if (!S_ISDIR(a.mode))
		return -EPERM;
	return strlen(text) == size && wfs_size_parse(text, &bytes) && bytes > 0 ? 0 : -EINVAL;
}

static int set_locked(struct wfs_store *s, uint64_t ino, const char *name, const void *value,
	size_t size, int flags)
{
	int found = has_xattr(s, ino, name);

	if (found >= 0 && strcmp(name, WFS_XATTR_MAX_SHARD_SIZE) == 0) {
		int err = check_shard_size(s, ino, value, size);

		if (err)
			return err;
	}
	if (found < 0)
		return found;
	if (found && flags & XATTR_CREATE)
		return -EEXIST;
	if (!found && flags & XATTR_REPLACE)
		return -ENODATA;
	found = wfs_db_run(&s->db, WFS_Q_XATTR_SET, "ibb", ino, name, strlen(name),
		size ? value : "", size);
	return found ? found : touch(s, ino);
}

int wfs_xattr_set(struct wfs_store *s, uint64_t ino, const char *name, const void *value,
	size_t size, int flags)
{
	int err = check_xattr_change(name);

	if (!err && size > WFS_XATTR_MAX)
		err = -E2BIG;
	if (!err)
		err = wfs_quota_take(s, size);
	if (!err)
		err = wfs_db_begin(&s->db);
	return err ? err : wfs_db_end(&s->db, set_locked(s, ino, name, value, size, flags));
}

/* What user.weightfs.error says: -ENODATA unless the file's verdict is a bad one. */
static int get_error(struct wfs_store *s, uint64_t ino, void **ret, size_t *ret_size)
{
	const unsigned char *reason, *detail;
	sqlite3_stmt *row;
	char *text = NULL;
	int found = wfs_db_first(&s->db, WFS_Q_INODE_VERDICT, &row, "i", ino);

	if (found <= 0)
		return found ? found : -ENOENT;
	reason = sqlite3_column_text(row, 1);
	detail = sqlite3_column_text(row, 2);
	if (sqlite3_column_int(row, 0) < WFS_VERDICT_INCOMPLETE || !reason)
		found = -ENODATA;
	else if (!(text = wfs_format("%s: %s", reason, detail ? (const char *)detail : "")))
		found = -ENOMEM;
	wfs_db_done(row);
	if (found < 0)
		return found;
	*ret = text;
	*ret_size = strlen(text);
	return 0;
}

/* The same of damaged content, which goes before what the gate said: 1, 0 or -errno. */
static int get_damage(struct wfs_store *s, uint64_t ino, void **ret, size_t *ret_size)
{
	WFS_AUTO_FREE char *detail = NULL;
	const char *reason;
	char *text;
	int found = wfs_damage_text(s, ino, &reason, &detail);

	if (found <= 0)
		return found;
	text = wfs_format("%s: %s", reason, detail);
	if (!text)
		return -ENOMEM;
	*ret = text;
	*ret_size = strlen(text);
	return 1;
}

static int get_locked(struct wfs_store *s, uint64_t ino, const char *name, void **ret,
	size_t *ret_size)
{
	sqlite3_stmt *row;
	int err;

	if (strcmp(name, ERROR_XATTR) == 0)
		return get_error(s, ino, ret, ret_size);
	err = wfs_db_first(&s->db, WFS_Q_XATTR_GET, &row, "ib", ino, name, strlen(name));
	if (err <= 0)
		return err ? err : -ENODATA;
	err = copy_blob(row, 0, ret, ret_size);
	wfs_db_done(row);
	return err;
}

int wfs_xattr_get(struct wfs_store *s, uint64_t ino, const char *name, void **ret, size_t *ret_size)
{
	int err = check_xattr_name(name);

	if (!err && strcmp(name, ERROR_XATTR) == 0)
		err = get_damage(s, ino, ret, ret_size);
	if (err)
		return WFS_MIN(err, 0);
	err = wfs_db_begin_read(&s->db);
	return err ? err : wfs_db_end(&s->db, get_locked(s, ino, name, ret, ret_size));
}

static int append(char **list, size_t *size, const void *name, size_t len)
{
	char *grown = realloc(*list, *size + len + 1);

	if (!grown)
		return -ENOMEM;
	if (len)
		memcpy(grown + *size, name, len);
	grown[*size + len] = '\0';
	*list = grown;
	*size += len + 1;
	return 0;
}

static int list_xattrs_locked(struct wfs_store *s, uint64_t ino, bool is_damaged, char **list,
	size_t *size)
{
	WFS_AUTO_FREE void *text = NULL;
	sqlite3_stmt *row;
	size_t len;
	int more;

	for (more = wfs_db_first(&s->db, WFS_Q_XATTR_LIST, &row, "i", ino); more > 0;
		more = wfs_db_next(&s->db, row)) {
		int err = append(list, size, sqlite3_column_blob(row, 0),
			(size_t)sqlite3_column_bytes(row, 0));

		if (err) {
			wfs_db_done(row);
			return err;
		}
	}
	if (more < 0)
		return more;
	more = is_damaged ? 0 : get_error(s, ino, &text, &len);
	if (more == -ENODATA)
		return 0;
	return more ? more : append(list, size, ERROR_XATTR, strlen(ERROR_XATTR));
}

int wfs_xattr_list(struct wfs_store *s, uint64_t ino, char **ret, size_t *ret_size)
{
	WFS_AUTO_FREE void *damage = NULL;
	char *list = NULL;
	size_t size = 0;
	int damaged = get_damage(s, ino, &damage, &size);
	int err = damaged < 0 ? damaged : wfs_db_begin_read(&s->db);

	size = 0;
	if (!err)
		err = wfs_db_end(&s->db, list_xattrs_locked(s, ino, damaged > 0, &list, &size));
	if (err) {
		free(list);
		return err;
	}
	*ret = list;
	*ret_size = size;
	return 0;
}

static int remove_locked(struct wfs_store *s, uint64_t ino, const char *name)
{
	int err = wfs_db_run(&s->db, WFS_Q_XATTR_REMOVE, "ib", ino, name, strlen(name));

	if (err)
		return err;
	return wfs_db_changes(&s->db) ? touch(s, ino) : -ENODATA;
}

int wfs_xattr_remove(struct wfs_store *s, uint64_t ino, const char *name)
{
	int err = check_xattr_change(name);

	if (!err)
		err = wfs_db_begin(&s->db);
	return err ? err : wfs_db_end(&s->db, remove_locked(s, ino, name));
}
