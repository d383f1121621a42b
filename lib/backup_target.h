/*
 * backup_target.h - the directory that a backup goes to: its lock, its names, its last
 * step. lib/backup.h says what lies there when. One thread.
 */
#ifndef WFS_BACKUP_TARGET_H
#define WFS_BACKUP_TARGET_H

#include "lib/base.h"
#include "lib/err.h"

#define WFS_BACKUP_DB "weightfs.db"
#define WFS_BACKUP_NEW "weightfs.db.new"
#define WFS_BACKUP_NEXT "weightfs.db.next"
#define WFS_BACKUP_SNAPSHOT "weightfs.db.snapshot" /* before it is .new */
#define WFS_BACKUP_INCOMING "data.next"
#define WFS_BACKUP_OUTGOING "data.old"

struct wfs_backup_target {
	char *path; /* absolute */
	int dir_fd, lock_fd;
};

/* What SQLite says of a database of the backup, as -errno; -EUCLEAN: it is damaged. */
int wfs_backup_errno(int code);

/* Make (with `create`), open and lock the directory. wfs_backup_target_close in any case. */
int wfs_backup_target_open(struct wfs_backup_target *t, const char *path, bool create,
	struct wfs_err *err);
void wfs_backup_target_close(struct wfs_backup_target *t);

/* PATH/NAME; the caller frees. NULL: out of memory. */
char *wfs_backup_target_path(const struct wfs_backup_target *t, const char *name);
/* Is there something of this name? 1, 0 or -errno. */
int wfs_backup_target_find(const struct wfs_backup_target *t, const char *name);
/* fsync of a directory in it; of itself for ".". 0 or -errno. */
int wfs_backup_target_sync(const struct wfs_backup_target *t, const char *name);
/* A name that is missing is success. */
int wfs_backup_target_remove(const struct wfs_backup_target *t, const char *name, struct wfs_err *err);

/* Call `fn` for each file of the two levels below the directory `top` (DIR/top/xx/NAME). A missing one has none. */
int wfs_backup_target_each(const struct wfs_backup_target *t, const char *top,
	int (*fn)(void *ctx, int xx_fd, const char *xx, const char *name), void *ctx, struct wfs_err *err);

/* Remove a directory of that form, with all that is in it. */
int wfs_backup_target_clear(const struct wfs_backup_target *t, const char *top, struct wfs_err *err);

/*
 * The last step, which may be repeated from any point of it: DIR/weightfs.db.next is there, and all that it
 * needs in data.next and data. *ret_removed counts data files that nothing needs any more.
 */
int wfs_backup_target_complete(const struct wfs_backup_target *t, uint64_t *ret_removed, struct wfs_err *err);

#endif
