/* A backup as one tar file: lib/backup.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "lib/array.h"
#include "lib/backup_priv.h"
#include "lib/format.h"
#include "lib/tar.h"

#define CHUNK ((size_t)1 << 20)
#define COPIES 3 /* of a file that is being written, before it is taken as it is */
#define PATH_SIZE 40

/* Data files that were written, in order of id. */
struct ids {
	uint64_t *list;
	size_t n, room;
};

struct archive {
	struct wfs_backup b;
	struct wfs_tar tar;
	struct ids written; /* whether they are still needed or not */
	struct ids good;    /* packs that are as the snapshot says */
	char *prev_path, *path; /* of the snapshots of the round before and of this one */
	char *buf;
	struct wfs_tar_range *ranges;
	size_t n_ranges, ranges_room;
};

/* ---- sets of ids ---- */

static size_t place_of(const struct ids *s, uint64_t id)
{
	size_t low = 0, high = s->n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (s->list[mid] < id)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static bool has_id(const struct ids *s, uint64_t id)
{
	size_t at = place_of(s, id);

	return at < s->n && s->list[at] == id;
}

static int add_id(struct ids *s, uint64_t id)
{
	size_t at = place_of(s, id);

	if (has_id(s, id))
		return 0;
	if (WFS_ARRAY_ROOM(s->list, s->n, s->room))
		return -ENOMEM;
	memmove(&s->list[at + 1], &s->list[at], (s->n - at) * sizeof(*s->list));
	s->list[at] = id;
	s->n++;
	return 0;
}

/* ---- one file ---- */

static int add_range(struct archive *a, uint64_t from, uint64_t to)
{
	if (WFS_ARRAY_ROOM(a->ranges, a->n_ranges, a->ranges_room))
		return -ENOMEM;
	a->ranges[a->n_ranges++] = (struct wfs_tar_range){ from, to - from };
	return 0;
}

static int find_ranges(struct archive *a, int fd, uint64_t size)
{
	uint64_t end = 0;
	int ret;

	a->n_ranges = 0;
	for (uint64_t at = 0; (ret = wfs_backup_next_data(fd, size, &at, &end)) > 0; at = end) {
		ret = add_range(a, at, end);
		if (ret)
			break;
	}
	return ret;
}

/* What is not there any more, of a file that got shorter, are zeros. */
static int put_range(struct archive *a, int fd, const struct wfs_tar_range *range)
{
	uint64_t at = range->offset, end = range->offset + range->length;
	int ret = 0;

	while (at < end && ret == 0) {
		size_t want = (size_t)WFS_MIN(CHUNK, end - at);
		ssize_t n = pread(fd, a->buf, want, (off_t)at);

		if (n < 0)
			return wfs_err_errno(a->b.err, -errno, "reading a data file");
		if (n == 0) {
			memset(a->buf, 0, want);
			n = (ssize_t)want;
		}
		ret = wfs_tar_bytes(&a->tar, a->buf, (size_t)n);
		at += (uint64_t)n;
		a->b.summary->bytes_copied += (uint64_t)n;
		wfs_backup_progress(&a->b, (uint64_t)n);
	}
	return ret;
}

static int put_open_file(struct archive *a, const char *name, int fd, const struct stat *st)
{
	int ret = find_ranges(a, fd, (uint64_t)st->st_size);

	if (ret == 0)
		ret = wfs_tar_begin_file(&a->tar, name, (uint64_t)st->st_size, &st->st_mtim, a->ranges,
			a->n_ranges);
	for (size_t i = 0; i < a->n_ranges && ret == 0; i++)
		ret = put_range(a, fd, &a->ranges[i]);
	return ret ? ret : wfs_tar_end_file(&a->tar);
}

static int put_data_file(struct archive *a, const struct wfs_backup_file *f)
{
	char name[WFS_DATAFILE_PATH_SIZE];
	struct stat st;
	WFS_AUTO_CLOSE int fd = wfs_backup_open_file(&a->b, f, &st);
	int ret;

	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	wfs_datafile_path(f->id, name);
	ret = add_id(&a->written, f->id);
	if (ret == 0)
		ret = put_open_file(a, name, fd, &st);
	for (int i = 1; ret == 0 && f->ino && !wfs_backup_is_steady(fd, &st); i++) {
		if (i == COPIES) {
			ret = wfs_backup_say_unsteady(&a->b, f->ino);
			break;
		}
		ret = fstat(fd, &st) != 0 ? -errno : put_open_file(a, name, fd, &st);
	}
	if (ret)
		return ret;
	a->b.summary->files_copied++;
	ret = wfs_backup_check(&a->b, f, fd);
	return ret > 0 && !f->ino ? add_id(&a->good, f->id) : WFS_MIN(ret, 0);
}

/* ---- a round ---- */

static int attach_prev(struct archive *a)
{
	char *sql = sqlite3_mprintf("ATTACH %Q AS prev", a->prev_path);
	int ret = sql ? wfs_backup_sql(&a->b, sql) : -ENOMEM;

	sqlite3_free(sql);
	return ret;
}

/* What was written in the rounds before counts, if the new snapshot has the same there. */
static int keep_good(struct archive *a)
{
	struct ids kept = { NULL, 0, 0 };
	int ret = attach_prev(a);

	for (size_t i = 0; i < a->good.n && ret >= 0; i++) {
		ret = wfs_backup_is_in(&a->b, "main", a->good.list[i]);
		if (ret > 0)
			ret = wfs_backup_is_in(&a->b, "prev", a->good.list[i]);
		if (ret > 0)
			ret = add_id(&kept, a->good.list[i]);
	}
	free(a->good.list);
	a->good = kept;
	return ret < 0 ? ret : wfs_backup_sql(&a->b, "DETACH prev");
}

static int run_round(struct archive *a)
{
	char *path = a->prev_path;
	struct stat st;
	int ret;

	a->prev_path = a->path;
	a->path = path;
	ret = wfs_backup_snapshot(&a->b, a->path);
	if (ret == 0 && a->good.n)
		ret = keep_good(a);
	a->b.done = a->b.total = 0;
	for (size_t i = 0; i < a->b.n_files && ret == 0; i++)
		if (!has_id(&a->good, a->b.files[i].id) &&
			wfs_datafile_stat(&a->b.live->datafiles, a->b.files[i].id, &st) == 0)
			a->b.total += (uint64_t)st.st_blocks * 512;
	for (size_t i = 0; i < a->b.n_files && ret == 0; i++)
		if (!has_id(&a->good, a->b.files[i].id))
			ret = put_data_file(a, &a->b.files[i]);
	return ret;
}

static int run_rounds(struct archive *a)
{
	const struct timespec moment = { .tv_nsec = 20 * 1000 * 1000 };

	for (int i = 0; i < WFS_BACKUP_ROUNDS; i++) {
		int ret = run_round(a);

		if (ret || !a->b.changed)
			return ret;
		nanosleep(&moment, NULL);
	}
	return wfs_err_set(a->b.err, -EAGAIN, "too-busy", WFS_NO_OFFSET,
		"%s changed all the time: files are opened to be written faster than they are copied",
		a->b.live->path);
}

/* ---- the database, last ---- */

/* What was written and is not needed any more: the first mount removes it. */
static int doom_rest(struct archive *a)
{
	char sql[120];
	int ret = wfs_backup_sql(&a->b, "BEGIN");

	for (size_t i = 0; i < a->written.n && ret == 0; i++) {
		snprintf(sql, sizeof(sql), "INSERT OR IGNORE INTO data_file (id, state) VALUES (%llu, 2)",
			(unsigned long long)a->written.list[i]);
		ret = wfs_backup_sql(&a->b, sql);
	}
	return ret ? ret : wfs_backup_sql(&a->b, "COMMIT");
}

static int put_database(struct archive *a)
{
	uint64_t copied = a->b.summary->bytes_copied;
	WFS_AUTO_CLOSE int fd = -1;
	struct stat st;
	int ret = doom_rest(a);

	if (ret)
		return ret;
	wfs_backup_close_snap(&a->b);
	fd = open(a->path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) != 0)
		return wfs_err_errno(a->b.err, -errno, "%s", a->path);
	a->b.summary->database_bytes = (uint64_t)st.st_size;
	ret = put_open_file(a, "weightfs.db", fd, &st);
	a->b.summary->bytes_copied = copied; /* of data files */
	return ret ? ret : wfs_tar_end(&a->tar);
}

static int put_directories(struct archive *a)
{
	char name[PATH_SIZE];
	int ret = wfs_tar_directory(&a->tar, "data/");

	for (unsigned xx = 0; xx < 256 && ret == 0; xx++) {
		snprintf(name, sizeof(name), "data/%02x/", xx);
		ret = wfs_tar_directory(&a->tar, name);
	}
	return ret;
}

static char *path_in(const char *dir, const char *name)
{
	return wfs_format("%s/%s", dir, name);
}

static void remove_snapshots(struct archive *a)
{
	if (a->path)
		unlink(a->path);
	if (a->prev_path)
		unlink(a->prev_path);
}

int wfs_backup_to_tar(const char *store, int fd, const char *work_dir,
	const struct wfs_backup_options *options, struct wfs_backup_summary *ret, struct wfs_err *err)
{
	struct archive a = { .b = { .options = options, .summary = ret, .err = err },
		.tar = { .fd = fd }, .buf = malloc(CHUNK), .path = path_in(work_dir, "1"),
		.prev_path = path_in(work_dir, "2") };
	int e = wfs_backup_open(&a.b, store);

	if (e == 0 && (!a.buf || !a.path || !a.prev_path))
		e = -ENOMEM;
	if (e == 0)
		e = put_directories(&a);
	if (e == 0)
		e = run_rounds(&a);
	if (e == 0)
		e = put_database(&a);
	if (e && err)
		wfs_err_errno(err, e, "writing the archive");
	wfs_backup_close(&a.b);
	remove_snapshots(&a);
	free(a.written.list);
	free(a.good.list);
	free(a.ranges);
	free(a.path);
	free(a.prev_path);
	free(a.buf);
	return e;
}
