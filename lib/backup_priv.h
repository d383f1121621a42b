/*
 * backup_priv.h - what the two forms of a backup share: the source, its snapshot, and
 * copies of single data files. One thread.
 */
#ifndef WFS_BACKUP_PRIV_H
#define WFS_BACKUP_PRIV_H

#include <sqlite3.h>
#include <sys/stat.h>
#include <time.h>

#include "lib/backup.h"
#include "lib/store_priv.h"

#define WFS_BACKUP_ROUNDS 100

/* One data file that a snapshot names. */
struct wfs_backup_file {
	uint64_t id;
	uint64_t ino; /* that it is the staging file of; 0: a pack */
};

struct wfs_backup {
	const struct wfs_backup_options *options;
	struct wfs_backup_summary *summary;
	struct wfs_err *err;
	struct wfs_store *live; /* opened to be read */
	int hold_fd;            /* -1: the collector is not kept away */
	struct timespec since;  /* what was changed before has an earlier ctime: before the snapshot, and under the hold */
	sqlite3 *snap;          /* the snapshot of this round; other databases may be attached */
	struct wfs_backup_file *files;
	size_t n_files;
	uint64_t done, total;   /* bytes, for the progress */
	bool changed;           /* in this round something was gone before it was copied */
};

int wfs_backup_open(struct wfs_backup *b, const char *store);
void wfs_backup_close(struct wfs_backup *b);

/* Begin a round: one committed state of the database as a new file `path`, open as b->snap, and its data files. */
int wfs_backup_snapshot(struct wfs_backup *b, const char *path);
/* Open a database that is there as b->snap. */
int wfs_backup_open_snap(struct wfs_backup *b, const char *path);
void wfs_backup_close_snap(struct wfs_backup *b);

/* Does the attached database `schema` say that it has all of this pack? 1, 0 or -errno. */
int wfs_backup_is_in(struct wfs_backup *b, const char *schema, uint64_t id);

/*
 * The data file, opened to be read; *ret_st. -ENOENT: gone, and b->changed is set.
 */
int wfs_backup_open_file(struct wfs_backup *b, const struct wfs_backup_file *f, struct stat *ret_st);

/*
 * After it was copied from `fd`: was what `f` is for in it until now? 1, or 0 with b->changed set. Lets the
 * collector work again if the disk has got full.
 */
int wfs_backup_check(struct wfs_backup *b, const struct wfs_backup_file *f, int fd);

/* Did the file's bytes stay the same since it was opened? */
bool wfs_backup_is_steady(int fd, const struct stat *before);
/* Say that a dirty file did not. */
int wfs_backup_say_unsteady(struct wfs_backup *b, uint64_t ino);

void wfs_backup_progress(struct wfs_backup *b, uint64_t bytes);

/* The next range with data of `fd` from *at on, to *end. 1, 0: none before `size`, -errno. Of a disk that knows no holes: all. */
int wfs_backup_next_data(int fd, uint64_t size, uint64_t *at, uint64_t *end);

int wfs_backup_sql(struct wfs_backup *b, const char *sql);
int wfs_backup_sql_error(struct wfs_backup *b, sqlite3 *handle, int code);
/* A statement with one number bound: 1 if it gives a row, 0, or -errno. *ret its first column, if not NULL. */
int wfs_backup_ask(struct wfs_backup *b, sqlite3 *handle, const char *sql, uint64_t n, uint64_t *ret);

#endif
