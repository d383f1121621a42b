/* A backup as a directory: lib/backup.h says in which order. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "lib/backup_priv.h"
#include "lib/backup_target.h"

#define CHUNK ((size_t)1 << 20)
#define COPIES 3 /* of a file that is being written, before it is taken as it is */
#define PATH_SIZE 80

struct dir {
	struct wfs_backup b;
	struct wfs_backup_target t;
	bool has_old; /* the backup that is there is attached as `old` */
	bool in_kernel; /* copies are made there: copy_file_range works between the two disks */
	char *buf;
};

static int io_error(struct dir *d, int ret, const char *name)
{
	if (ret == -ENOSPC || ret == -EDQUOT)
		return wfs_err_set(d->b.err, ret, "no-space", WFS_NO_OFFSET,
			"%s: %s; the backup that was there is as it was", d->t.path, strerror(-ret));
	return wfs_err_errno(d->b.err, ret, "%s/%s", d->t.path, name);
}

/* ---- bytes ---- */

/* A file that got shorter meanwhile has been written. 0 or -errno. */
static int copy_by_hand(struct dir *d, int from, int to, uint64_t at, uint64_t end)
{
	while (at < end) {
		ssize_t n = pread(from, d->buf, WFS_MIN(CHUNK, end - at), (off_t)at);
		ssize_t put = n > 0 ? wfs_pwrite_some(to, d->buf, (size_t)n, at) : n;

		if (n <= 0)
			return n < 0 ? -errno : 0;
		if (put < n)
			return put < 0 ? (int)put : -ENOSPC;
		at += (uint64_t)n;
		d->b.summary->bytes_copied += (uint64_t)n;
		wfs_backup_progress(&d->b, (uint64_t)n);
	}
	return 0;
}

static int copy_range(struct dir *d, int from, int to, uint64_t at, uint64_t end)
{
	while (d->in_kernel && at < end) {
		off_t in = (off_t)at, out = (off_t)at;
		ssize_t n = copy_file_range(from, &in, to, &out, WFS_MIN(64 * CHUNK, end - at), 0);

		if (n == 0)
			return 0;
		if (n < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EIO))
			return -errno;
		if (n < 0) {
			d->in_kernel = false;
			break;
		}
		at += (uint64_t)n;
		d->b.summary->bytes_copied += (uint64_t)n;
		wfs_backup_progress(&d->b, (uint64_t)n);
	}
	return copy_by_hand(d, from, to, at, end);
}

static int copy_bytes(struct dir *d, int from, int to, const struct stat *st)
{
	uint64_t size = (uint64_t)st->st_size, end = 0;
	int ret;

	if (size > 0 && ioctl(to, FICLONE, from) == 0)
		return ftruncate(to, st->st_size) != 0 ? -errno : 0;
	if (ftruncate(to, 0) != 0 || ftruncate(to, st->st_size) != 0)
		return -errno;
	for (uint64_t at = 0; (ret = wfs_backup_next_data(from, size, &at, &end)) > 0; at = end) {
		ret = copy_range(d, from, to, at, end);
		if (ret)
			return ret;
	}
	return ret;
}

/* ---- one file ---- */

/* The time of a staging file is that of the file that it is of. */
static int finish_copy(int to, const struct stat *st)
{
	const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, st->st_mtim };

	if (futimens(to, times) != 0 || fdatasync(to) != 0)
		return -errno;
	posix_fadvise(to, 0, 0, POSIX_FADV_DONTNEED);
	return 0;
}

static int copy_steadily(struct dir *d, const struct wfs_backup_file *f, int from, int to, struct stat *st)
{
	int ret = copy_bytes(d, from, to, st);

	for (int i = 1; ret == 0 && f->ino && !wfs_backup_is_steady(from, st); i++) {
		if (i == COPIES)
			return wfs_backup_say_unsteady(&d->b, f->ino);
		ret = fstat(from, st) != 0 ? -errno : copy_bytes(d, from, to, st);
	}
	return ret;
}

static void name_incoming(uint64_t id, const char *suffix, char name[PATH_SIZE])
{
	snprintf(name, PATH_SIZE, WFS_BACKUP_INCOMING "/%02x/%016llx%s", (unsigned)(id & 0xff),
		(unsigned long long)id, suffix);
}

static int create_part(struct dir *d, const char *name)
{
	const int flags = O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC;
	int fd = openat(d->t.dir_fd, name, flags, 0600);
	char xx[PATH_SIZE];

	if (fd >= 0 || errno != ENOENT)
		return fd < 0 ? -errno : fd;
	snprintf(xx, sizeof(xx), "%.*s", (int)(strrchr(name, '/') - name), name);
	if (mkdirat(d->t.dir_fd, WFS_BACKUP_INCOMING, 0700) != 0 && errno != EEXIST)
		return -errno;
	if (mkdirat(d->t.dir_fd, xx, 0700) != 0 && errno != EEXIST)
		return -errno;
	fd = openat(d->t.dir_fd, name, flags, 0600);
	return fd < 0 ? -errno : fd;
}

/* Only a whole copy gets the name. What was gone meanwhile is left for the next round. */
static int copy_open_file(struct dir *d, const struct wfs_backup_file *f, int from, struct stat *st)
{
	char part[PATH_SIZE], name[PATH_SIZE];
	WFS_AUTO_CLOSE int to = -1;
	int ret, is_there;

	name_incoming(f->id, ".part", part);
	name_incoming(f->id, "", name);
	to = create_part(d, part);
	ret = to < 0 ? to : copy_steadily(d, f, from, to, st);
	if (ret == 0)
		ret = finish_copy(to, st);
	if (ret)
		return io_error(d, ret, part);
	is_there = wfs_backup_check(&d->b, f, from);
	if (is_there <= 0) {
		unlinkat(d->t.dir_fd, part, 0);
		return is_there;
	}
	d->b.summary->files_copied++;
	return renameat(d->t.dir_fd, part, d->t.dir_fd, name) != 0 ? io_error(d, -errno, name) : 0;
}

static int copy_file(struct dir *d, const struct wfs_backup_file *f)
{
	struct stat st;
	WFS_AUTO_CLOSE int from = wfs_backup_open_file(&d->b, f, &st);

	if (from < 0)
		return from == -ENOENT ? 0 : from;
	return copy_open_file(d, f, from, &st);
}

/* ---- what is there already ---- */

/* In the directory of data files, of the size that it has in the store? */
static bool has_file(struct dir *d, uint64_t id, struct stat *ret)
{
	char name[WFS_DATAFILE_PATH_SIZE];
	struct stat st;

	wfs_datafile_path(id, name);
	return fstatat(d->t.dir_fd, name, ret, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(ret->st_mode) &&
	       wfs_datafile_stat(&d->b.live->datafiles, id, &st) == 0 && st.st_size == ret->st_size;
}

/* 1: an earlier backup, or this one, has it; 0 or -errno. */
static int is_had(struct dir *d, const struct wfs_backup_file *f)
{
	char name[PATH_SIZE];
	struct stat st;
	int ret;

	name_incoming(f->id, "", name);
	if (f->ino)
		return 0;
	ret = wfs_backup_target_find(&d->t, name);
	if (ret)
		return ret < 0 ? io_error(d, ret, name) : 1; /* sweep() left what is as the snapshot says */
	if (!d->has_old || !has_file(d, f->id, &st))
		return 0;
	ret = wfs_backup_is_in(&d->b, "old", f->id);
	if (ret > 0) {
		d->b.summary->files_kept++;
		d->b.summary->bytes_kept += (uint64_t)st.st_blocks * 512;
	}
	return ret;
}

/* From data.next goes what the new snapshot has otherwise. */
static int sweep_file(void *ctx, int xx_fd, const char *xx, const char *name)
{
	struct dir *d = ctx;
	uint64_t id = strtoull(name, NULL, 16);
	int stays = 0;

	(void)xx;
	if (strlen(name) == 16)
		stays = wfs_backup_is_in(&d->b, "main", id);
	if (stays > 0)
		stays = wfs_backup_is_in(&d->b, "prev", id);
	if (stays == 0 && unlinkat(xx_fd, name, 0) != 0)
		return -errno;
	return WFS_MIN(stays, 0);
}

static int attach(struct dir *d, const char *name, const char *schema)
{
	WFS_AUTO_FREE char *path = wfs_backup_target_path(&d->t, name);
	char *sql = path ? sqlite3_mprintf("ATTACH %Q AS %s", path, schema) : NULL;
	int ret = sql ? wfs_backup_sql(&d->b, sql) : -ENOMEM;

	sqlite3_free(sql);
	return ret;
}

static int sweep(struct dir *d)
{
	int ret = wfs_backup_target_find(&d->t, WFS_BACKUP_NEW);

	if (ret < 0)
		return io_error(d, ret, WFS_BACKUP_NEW);
	if (ret == 0)
		return wfs_backup_target_clear(&d->t, WFS_BACKUP_INCOMING, d->b.err);
	ret = attach(d, WFS_BACKUP_NEW, "prev");
	if (ret == 0)
		ret = wfs_backup_target_each(&d->t, WFS_BACKUP_INCOMING, sweep_file, d, d->b.err);
	if (ret == 0)
		ret = wfs_backup_sql(&d->b, "DETACH prev");
	return ret;
}

/* ---- a round ---- */

static int take_snapshot(struct dir *d)
{
	WFS_AUTO_FREE char *path = wfs_backup_target_path(&d->t, WFS_BACKUP_SNAPSHOT);
	WFS_AUTO_FREE char *new = wfs_backup_target_path(&d->t, WFS_BACKUP_NEW);
	int ret = path && new ? wfs_backup_snapshot(&d->b, path) : -ENOMEM;

	if (ret == 0)
		ret = sweep(d);
	wfs_backup_close_snap(&d->b);
	if (ret)
		return ret;
	if (rename(path, new) != 0)
		return io_error(d, -errno, WFS_BACKUP_NEW);
	ret = wfs_backup_open_snap(&d->b, new);
	return ret == 0 && d->has_old ? attach(d, WFS_BACKUP_DB, "old") : ret;
}

/* How much there is to copy. */
static void count_total(struct dir *d)
{
	struct stat st;

	d->b.done = d->b.total = 0;
	for (size_t i = 0; i < d->b.n_files; i++)
		if (wfs_datafile_stat(&d->b.live->datafiles, d->b.files[i].id, &st) == 0)
			d->b.total += (uint64_t)st.st_blocks * 512;
}

static int run_round(struct dir *d)
{
	int ret = take_snapshot(d);

	d->b.summary->files_kept = d->b.summary->bytes_kept = 0;
	if (ret == 0)
		count_total(d);
	for (size_t i = 0; i < d->b.n_files && ret == 0; i++) {
		ret = is_had(d, &d->b.files[i]);
		if (ret == 0)
			ret = copy_file(d, &d->b.files[i]);
		ret = WFS_MIN(ret, 0);
	}
	return ret;
}

static int run_rounds(struct dir *d)
{
	const struct timespec moment = { .tv_nsec = 20 * 1000 * 1000 };
	int ret;

	for (int i = 0; i < WFS_BACKUP_ROUNDS; i++) {
		ret = run_round(d);
		if (ret || !d->b.changed)
			return ret;
		nanosleep(&moment, NULL);
	}
	return wfs_err_set(d->b.err, -EAGAIN, "too-busy", WFS_NO_OFFSET,
		"%s changed all the time: files are opened to be written faster than they are copied",
		d->b.live->path);
}

/* ---- the end ---- */

static int sync_if_there(struct dir *d, const char *name)
{
	int ret = wfs_backup_target_sync(&d->t, name);

	return ret == -ENOENT ? 0 : ret;
}

static int sync_incoming(struct dir *d)
{
	char name[PATH_SIZE];
	int ret = 0;

	for (unsigned xx = 0; xx < 256 && ret == 0; xx++) {
		snprintf(name, sizeof(name), WFS_BACKUP_INCOMING "/%02x", xx);
		ret = sync_if_there(d, name);
	}
	if (ret == 0)
		ret = sync_if_there(d, WFS_BACKUP_INCOMING);
	return ret ? ret : wfs_backup_target_sync(&d->t, ".");
}

static int sync_database(struct dir *d)
{
	WFS_AUTO_CLOSE int fd = openat(d->t.dir_fd, WFS_BACKUP_NEW, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fchmod(fd, 0600) != 0 || fsync(fd) != 0 || fstat(fd, &st) != 0)
		return -errno;
	d->b.summary->database_bytes = (uint64_t)st.st_size;
	return 0;
}

static int commit(struct dir *d)
{
	int ret;

	wfs_backup_close_snap(&d->b);
	ret = sync_database(d);
	if (ret == 0)
		ret = sync_incoming(d);
	if (ret == 0 && renameat(d->t.dir_fd, WFS_BACKUP_NEW, d->t.dir_fd, WFS_BACKUP_NEXT) != 0)
		ret = -errno;
	if (ret == 0)
		ret = wfs_backup_target_sync(&d->t, ".");
	if (ret)
		return io_error(d, ret, WFS_BACKUP_NEXT);
	return wfs_backup_target_complete(&d->t, &d->b.summary->files_removed, d->b.err);
}

/* So that a disk that is full is not full of what is of no use. */
static void give_up(struct dir *d)
{
	wfs_backup_close_snap(&d->b);
	wfs_backup_target_clear(&d->t, WFS_BACKUP_INCOMING, NULL);
	wfs_backup_target_remove(&d->t, WFS_BACKUP_SNAPSHOT, NULL);
	wfs_backup_target_remove(&d->t, WFS_BACKUP_SNAPSHOT "-journal", NULL);
	wfs_backup_target_remove(&d->t, WFS_BACKUP_NEW, NULL);
}

/* ---- the beginning ---- */

static int check_apart(struct dir *d)
{
	const char *store = d->b.live->path, *target = d->t.path;
	size_t n = strlen(store), m = strlen(target);

	if ((strncmp(target, store, n) == 0 && (target[n] == '/' || !target[n])) ||
		(strncmp(store, target, m) == 0 && store[m] == '/'))
		return wfs_err_set(d->b.err, -EINVAL, "backup-in-store", WFS_NO_OFFSET,
			"the backup %s and the store %s are not apart", target, store);
	return 0;
}

static int check_lineage(struct dir *d, struct wfs_store *old)
{
	WFS_AUTO_FREE char *note = NULL;
	const char *sql = "SELECT value FROM meta WHERE key = 'created_ns'";
	uint64_t here = 0, there = 0;
	int ret = wfs_store_read_note(old, WFS_NOTE_BACKUP, &note);

	if (ret < 0)
		return wfs_err_errno(d->b.err, ret, "%s", d->t.path);
	if (!note)
		return wfs_err_set(d->b.err, -EEXIST, "not-a-backup", WFS_NO_OFFSET,
			"%s is a store that was mounted to be written, and no backup any more", d->t.path);
	ret = wfs_backup_ask(&d->b, d->b.live->db.handle, sql, 0, &here);
	if (ret >= 0)
		ret = wfs_backup_ask(&d->b, old->db.handle, sql, 0, &there);
	if (ret < 0)
		return ret;
	if (here != there)
		return wfs_err_set(d->b.err, -EEXIST, "other-store", WFS_NO_OFFSET,
			"%s is a backup of another store", d->t.path);
	return 0;
}

static int look_at_old(struct dir *d)
{
	const struct wfs_store_options options = { .mode = WFS_STORE_READ };
	struct wfs_store *old;
	int ret = wfs_backup_target_find(&d->t, WFS_BACKUP_DB);

	if (ret == 0 && (ret = wfs_backup_target_find(&d->t, "data")) > 0)
		return wfs_err_set(d->b.err, -EEXIST, "not-a-backup", WFS_NO_OFFSET,
			"%s has data files, but no weightfs.db: it is no backup", d->t.path);
	else if (ret <= 0)
		return ret ? io_error(d, ret, WFS_BACKUP_DB) : 0;
	ret = wfs_store_open(d->t.path, &options, &old, d->b.err);
	if (ret)
		return ret;
	ret = check_lineage(d, old);
	d->has_old = ret == 0;
	wfs_store_close(old);
	return ret;
}

static int run(struct dir *d, const char *path)
{
	uint64_t removed = 0;
	int ret = wfs_backup_target_open(&d->t, path, true, d->b.err);

	if (ret == 0)
		ret = check_apart(d);
	if (ret == 0 && (ret = wfs_backup_target_find(&d->t, WFS_BACKUP_NEXT)) > 0)
		ret = wfs_backup_target_complete(&d->t, &removed, d->b.err);
	else if (ret < 0)
		wfs_err_errno(d->b.err, ret, "%s/" WFS_BACKUP_NEXT, path);
	if (ret == 0)
		ret = look_at_old(d);
	if (ret == 0)
		ret = wfs_backup_target_clear(&d->t, WFS_BACKUP_OUTGOING, d->b.err);
	if (ret)
		return ret;
	ret = run_rounds(d);
	if (ret == 0)
		return commit(d);
	if (ret == -ENOSPC || ret == -EDQUOT)
		give_up(d);
	return ret;
}

int wfs_backup_to_dir(const char *store, const char *dir, const struct wfs_backup_options *options,
	struct wfs_backup_summary *ret, struct wfs_err *err)
{
	struct dir d = { .b = { .options = options, .summary = ret, .err = err }, .in_kernel = true,
		.t = { .dir_fd = -1, .lock_fd = -1 }, .buf = malloc(CHUNK) };
	int e = d.buf ? wfs_backup_open(&d.b, store) : -ENOMEM;

	if (e == 0)
		e = run(&d, dir);
	wfs_backup_close(&d.b);
	wfs_backup_target_close(&d.t);
	free(d.buf);
	return e;
}

int wfs_backup_finish(const char *dir, struct wfs_err *err)
{
	struct wfs_backup_target t;
	uint64_t removed = 0;
	int ret = wfs_backup_target_open(&t, dir, false, err);

	if (ret == 0 && (ret = wfs_backup_target_find(&t, WFS_BACKUP_NEXT)) > 0) {
		ret = wfs_backup_target_complete(&t, &removed, err);
		ret = ret ? ret : 1;
	} else if (ret < 0) {
		wfs_err_errno(err, ret, "%s/" WFS_BACKUP_NEXT, dir);
	}
	wfs_backup_target_close(&t);
	return ret;
}
