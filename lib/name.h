/*
 * name.h - the namespace: inodes, directory entries, attributes, xattrs.
 *
 * Every function that changes something is one transaction, committed (so it
 * survives the process; wfs_store_sync makes it survive a power cut) before
 * it returns. Permissions are not checked here: the kernel does
 * (default_permissions). Times are set as POSIX says for each operation.
 *
 * Names are `len` bytes, 1..255, without NUL and '/'; "." and ".." are refused
 * with -EINVAL. -ENAMETOOLONG past 255. All functions return 0 or -errno, and
 * -EIO or -EUCLEAN with the log filled when the database fails. All may be
 * called from any thread; they take the database lock and, where said, a
 * file's lock before it.
 */
#ifndef WFS_NAME_H
#define WFS_NAME_H

#include <sys/types.h>

#include "lib/base.h"
#include "lib/err.h"
#include "lib/store.h"

#define WFS_ROOT_INO 1
#define WFS_NAME_MAX 255
#define WFS_XATTR_MAX 65536     /* bytes of a value, as Linux */
#define WFS_SYMLINK_MAX 4095    /* bytes of a target */

enum wfs_verdict {
	WFS_VERDICT_NONE,       /* never judged, or changed since */
	WFS_VERDICT_VALID,
	WFS_VERDICT_OPAQUE,     /* empty, or a git-lfs pointer */
	WFS_VERDICT_INCOMPLETE,
	WFS_VERDICT_WRONG,
	WFS_VERDICT_DAMAGED,    /* bytes that were acknowledged are gone; reads give EIO */
};

/* "none", "valid", "opaque", "incomplete", "wrong", "damaged"; "unknown" for another number. Static storage. */
const char *wfs_verdict_name(enum wfs_verdict verdict);

struct wfs_attr {
	uint64_t ino;
	uint32_t mode;          /* type and permissions, as st_mode */
	uint32_t uid, gid;
	uint32_t nlink;
	uint64_t rdev;
	uint64_t size;          /* bytes */
	uint64_t blocks;        /* of 512 bytes */
	int64_t atime_ns, mtime_ns, ctime_ns, btime_ns;
	uint64_t manifest;      /* 0: none */
	uint64_t data_file;     /* staging; 0: not dirty */
	enum wfs_verdict verdict;
};

/* The caller of an operation, and what a new inode starts with. */
struct wfs_new {
	uint32_t mode;          /* type and permissions, umask applied */
	uint32_t uid, gid;      /* the caller's; a set-gid directory gives its own gid */
	uint64_t rdev;
	const char *target;     /* symbolic links */
	bool sealed;            /* regular files: empty and sealed, the first writer makes the staging file */
};

/* -ENOENT, -ENOTDIR. For a dirty file, size and times are those of its data file. */
int wfs_name_lookup(struct wfs_store *s, uint64_t parent, const char *name, struct wfs_attr *ret);
int wfs_name_getattr(struct wfs_store *s, uint64_t ino, struct wfs_attr *ret);

/*
 * Resolve a path from the root ("/a/b", "a/b", "" or "/" for the root itself);
 * symbolic links are not followed. -ENOENT, -ENOTDIR.
 */
int wfs_name_resolve(struct wfs_store *s, const char *path, struct wfs_attr *ret);

/*
 * One path of an inode from the root, "/a/b"; "" if it has no name. The
 * caller frees *ret.
 */
int wfs_name_path(struct wfs_store *s, uint64_t ino, char **ret);
/* The same, but -EBUSY instead of waiting for the database. */
int wfs_name_try_path(struct wfs_store *s, uint64_t ino, char **ret);

/* -EEXIST, -ENOENT (parent gone), -ENOTDIR. A regular file is made dirty, with a staging file. */
int wfs_name_create(struct wfs_store *s, uint64_t parent, const char *name,
	const struct wfs_new *new, struct wfs_attr *ret);

/* A regular file without a name (O_TMPFILE): nlink 0 until wfs_name_link. */
int wfs_name_create_unnamed(struct wfs_store *s, uint64_t parent, const struct wfs_new *new,
	struct wfs_attr *ret);

/* -EEXIST, -EPERM for a directory. The new attributes in *ret. */
int wfs_name_link(struct wfs_store *s, uint64_t ino, uint64_t parent, const char *name,
	struct wfs_attr *ret);

/*
 * Remove a name. *ret_ino is the inode that it named and *ret_gone true if
 * that was its last name: it then lives until wfs_name_drop. -EISDIR,
 * -ENOENT; rmdir: -ENOTDIR, -ENOTEMPTY.
 */
int wfs_name_unlink(struct wfs_store *s, uint64_t parent, const char *name, uint64_t *ret_ino,
	bool *ret_gone);
int wfs_name_rmdir(struct wfs_store *s, uint64_t parent, const char *name, uint64_t *ret_ino);

/* What a rename did. */
struct wfs_renamed {
	uint64_t ino;          /* the one that was renamed */
	uint64_t replaced;     /* the inode that lost the new name, or 0; with EXCHANGE the other one */
	bool replaced_gone;    /* it has no name left */
};

/*
 * rename(2). `flags`: 0, RENAME_NOREPLACE or RENAME_EXCHANGE. -ENOENT,
 * -EEXIST, -ENOTEMPTY, -EISDIR, -ENOTDIR, -EINVAL (into itself).
 * The gate is the caller's to ask first (lib/gate.h).
 */
int wfs_name_rename(struct wfs_store *s, uint64_t parent, const char *name, uint64_t new_parent,
	const char *new_name, unsigned flags, struct wfs_renamed *ret);

/*
 * Free inodes that have no name and are in nobody's hands any more: drop
 * their content's references and rows, in one transaction. Inodes that have a
 * name again are left alone.
 */
int wfs_name_drop(struct wfs_store *s, const uint64_t *inos, size_t n);

/* Which of the members of `attr` wfs_name_setattr sets. */
enum wfs_set {
	WFS_SET_MODE = 1 << 0,
	WFS_SET_UID = 1 << 1,
	WFS_SET_GID = 1 << 2,
	WFS_SET_ATIME = 1 << 3,
	WFS_SET_MTIME = 1 << 4,
	WFS_SET_ATIME_NOW = 1 << 5,
	WFS_SET_MTIME_NOW = 1 << 6,
	WFS_SET_CTIME_NOW = 1 << 7, /* alone: something else changed */
};

/* Everything of setattr but the size (wfs_file_truncate). ctime becomes now. */
int wfs_name_setattr(struct wfs_store *s, uint64_t ino, unsigned set, const struct wfs_attr *attr,
	struct wfs_attr *ret);

/* The target of a symbolic link; the caller frees *ret. -EINVAL for others. */
int wfs_name_readlink(struct wfs_store *s, uint64_t ino, char **ret);

/*
 * wfs_name_lookup, but where a symbolic link stands there, of what it leads to within
 * the store. -ENOENT where it leads out of it, -ELOOP, -ENOTDIR; -EACCES where several users look at the
 * store and a directory on the way is not open to everybody. Who may read what is found is for the caller to see.
 */
int wfs_name_follow(struct wfs_store *s, uint64_t parent, const char *name, struct wfs_attr *ret);
/* Is this error of it one of a link that leads nowhere? */
bool wfs_follow_finds_nothing(int err);

struct wfs_dirent {
	uint64_t id;       /* position: pass as `after` to go on behind it; > 0 */
	const char *name;  /* NUL-terminated, borrowed until the callback returns */
	uint64_t ino;
	uint32_t mode;     /* with type */
	struct wfs_attr attr; /* filled only with `want_attr` */
};

/*
 * Entries of a directory in order of id, those behind `after` (0: all), at
 * most `max` in one call, from one committed state. Return non-zero from fn to
 * stop. The callback runs under no lock. Entries that come or go between
 * calls are seen or not; others exactly once.
 */
int wfs_name_readdir(struct wfs_store *s, uint64_t dir, uint64_t after, size_t max, bool want_attr,
	int (*fn)(void *ctx, const struct wfs_dirent *entry), void *ctx);

/* The directory that holds directory `ino`; the root's is the root. */
int wfs_name_parent(struct wfs_store *s, uint64_t ino, uint64_t *ret);

/* ---- extended attributes ---- */

/* Of a directory: how large shards may be that are made in it (lib/model_write.h), "500MB". -EINVAL for anything else. */
#define WFS_XATTR_MAX_SHARD_SIZE "user.weightfs.max_shard_size"

/*
 * Reserved: user.weightfs.* (-EPERM on change); user.weightfs.error is there to
 * read on a file whose verdict has a reason.
 * set: `flags` XATTR_CREATE, XATTR_REPLACE or 0; -EEXIST, -ENODATA, -E2BIG.
 * get, list: the caller frees *ret. list gives NUL-terminated names one after the other.
 */
int wfs_xattr_set(struct wfs_store *s, uint64_t ino, const char *name, const void *value,
	size_t size, int flags);
int wfs_xattr_get(struct wfs_store *s, uint64_t ino, const char *name, void **ret, size_t *ret_size);
int wfs_xattr_list(struct wfs_store *s, uint64_t ino, char **ret, size_t *ret_size);
int wfs_xattr_remove(struct wfs_store *s, uint64_t ino, const char *name);

#endif
