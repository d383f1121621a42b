#include "lib/fsck_check.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/datafile.h"
#include "lib/listdir.h"
#include "lib/power.h"

#define STAGING 0 /* data_file.state */

void wfs_fsck_data_path(int64_t id, char buf[WFS_FSCK_PATH_SIZE])
{
	snprintf(buf, WFS_FSCK_PATH_SIZE, "%02x/%016" PRIx64, (unsigned)(id & 0xff), (uint64_t)id);
}

/* ---- rows without a file ---- */

static bool is_missing(struct wfs_fsck_run *run, int64_t id)
{
	char path[WFS_FSCK_PATH_SIZE];
	struct stat st;

	wfs_fsck_data_path(id, path);
	/* What is there but no regular file is found when the directory is read. */
	if (run->data_fd >= 0 && fstatat(run->data_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0)
		return false;
	if (run->data_fd >= 0)
		wfs_fsck_could_not(run, id, errno);
	return true;
}

/* True if there are objects in it, no whole copy, and each of them is excused. */
static bool is_given_up(struct wfs_fsck_run *run, int64_t id)
{
	sqlite3_stmt *stmt;
	bool all = run->n_excused > 0;
	uint64_t n = 0;
	int ret = wfs_fsck_query(run, "SELECT id FROM object WHERE data_file = ?1 UNION ALL"
		" SELECT -1 FROM manifest WHERE whole = ?1 AND refs <> 0", &stmt);

	if (stmt)
		sqlite3_bind_int64(stmt, 1, id);
	for (; ret >= 0 && all && (ret = wfs_fsck_step(run, stmt)) > 0; n++)
		all = wfs_fsck_is_excused(run, sqlite3_column_int64(stmt, 0));
	sqlite3_finalize(stmt);
	return all && n > 0 && ret >= 0;
}

static void report_missing(struct wfs_fsck_run *run, int64_t id)
{
	struct wfs_fsck_line where = { .len = 0 };
	char path[WFS_FSCK_PATH_SIZE];

	wfs_fsck_data_path(id, path);
	wfs_fsck_add(&where, "data/%s", path);
	wfs_fsck_report_at(run, "data-file-missing", where.text,
		"the file is missing; table data_file has a row for it");
}

/*
 * Doomed and filling files may be gone already, or not yet there. Staging files
 * of a store in use come and go while this reads.
 */
static int check_files_present(struct wfs_fsck_run *run)
{
	sqlite3_stmt *stmt;
	int ret;

	wfs_fsck_begin(run, "data-file-missing");
	ret = wfs_fsck_query(run, "SELECT d.id, d.state FROM data_file d WHERE d.state IN (0, 1)"
		" AND NOT EXISTS (SELECT 1 FROM inode i WHERE i.data_file = d.id AND i.verdict = 5)", &stmt);
	while (ret >= 0 && (ret = wfs_fsck_step(run, stmt)) > 0) {
		int64_t id = sqlite3_column_int64(stmt, 0);

		if (run->in_use && sqlite3_column_int64(stmt, 1) == STAGING)
			continue;
		if (is_missing(run, id) && !is_given_up(run, id) &&
		    wfs_fsck_still(run, "SELECT 1 FROM data_file WHERE id = ? AND state IN (0, 1)",
			    id, 0))
			report_missing(run, id);
	}
	sqlite3_finalize(stmt);
	return ret;
}

/* ---- files without a row ---- */

/* The directory entries of data/ against table data_file. */
struct scan {
	struct wfs_fsck_run *run;
	sqlite3_stmt *has_row;
	int64_t last_id;  /* the largest that was ever given out */
	bool was_cut;     /* the power went, and nobody has mounted the store since */
	const char *dir;  /* that it is in */
};

static void stray(struct scan *scan, const char *dir, const char *name, const char *text)
{
	struct wfs_fsck_line where = { .len = 0 };

	wfs_fsck_add(&where, "data/");
	wfs_fsck_add_bytes(&where, dir, strlen(dir));
	if (name) {
		wfs_fsck_add(&where, "/");
		wfs_fsck_add_bytes(&where, name, strlen(name));
	}
	wfs_fsck_report_at(scan->run, "data-file-stray", where.text, text);
}

/* 1, 0 or -errno. */
static int has_row(struct scan *scan, uint64_t id)
{
	int ret;

	if (!scan->has_row)
		return 1; /* the query could not be made, which was reported */
	sqlite3_reset(scan->has_row);
	sqlite3_bind_int64(scan->has_row, 1, (int64_t)id);
	ret = wfs_fsck_step(scan->run, scan->has_row);
	sqlite3_reset(scan->has_row);
	return ret;
}

/*
 * A file is made before its row is committed. While the store is in use that
 * can be seen, and any removal too; after a crash the files whose rows did not
 * survive have ids that were never given out, and recovery removes them. A power
 * cut can undo the removal of a file and not that of its row: then recovery looks
 * at all (wfs_power_sweep).
 */
static bool is_excused(struct scan *scan, uint64_t id)
{
	struct wfs_fsck_run *run = scan->run;

	if (run->in_use || wfs_fsck_in_use(run))
		return true;
	return scan->was_cut || (!run->clean && id > (uint64_t)scan->last_id);
}

static int check_entry(void *ctx, int dir_fd, const char *name)
{
	struct scan *scan = ctx;
	const char *dir = scan->dir;
	uint64_t id;
	struct stat st;
	int found;

	if (!wfs_datafile_is_hex(name, 16) || strcmp(name + 14, dir) != 0) {
		stray(scan, dir, name, "the name is not that of a data file");
		return 0;
	}
	if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
		return 0; /* removed since */
	if (!S_ISREG(st.st_mode)) {
		stray(scan, dir, name, "it is no regular file");
		return 0;
	}
	id = strtoull(name, NULL, 16);
	found = has_row(scan, id);
	if (found == 0 && !is_excused(scan, id))
		stray(scan, dir, name, "table data_file has no row for it");
	return WFS_MIN(found, 0);
}

static int check_directory(void *ctx, int data_fd, const char *name)
{
	struct scan *scan = ctx;
	int ret = -ENOTDIR;

	/* A look-up costs little; what is bounded is the cost of each. */
	scan->run->spent = 0;
	scan->dir = name;
	if (wfs_datafile_is_hex(name, 2))
		ret = wfs_listdir(data_fd, name, check_entry, scan);
	if (ret != -ENOTDIR && ret != -ELOOP)
		return ret ? wfs_err_errno(scan->run->err, ret, "%s/data/%s", scan->run->path, name) : 0;
	stray(scan, name, NULL, "it is none of the directories 00 to ff");
	return 0;
}

static int read_last_id(struct wfs_fsck_run *run, int64_t *ret_id)
{
	sqlite3_stmt *stmt;
	int ret = wfs_fsck_query(run, "SELECT max(seq) FROM sqlite_sequence"
		" WHERE name = 'data_file'", &stmt);

	if (ret == 0)
		ret = wfs_fsck_step(run, stmt);
	*ret_id = ret > 0 ? WFS_MAX(sqlite3_column_int64(stmt, 0), 0) : 0;
	sqlite3_finalize(stmt);
	return WFS_MIN(ret, 0);
}

static int read_was_cut(struct wfs_fsck_run *run, bool *ret_was_cut)
{
	char now[WFS_BOOT_ID_SIZE];
	sqlite3_stmt *stmt;
	int ret = wfs_power_boot_id(now);

	*ret_was_cut = false;
	if (ret)
		return wfs_err_errno(run->err, ret, "the boot id of this machine");
	ret = wfs_fsck_query(run, "SELECT 1 FROM meta WHERE key = '" WFS_META_BOOT_ID "' AND value <> ?", &stmt);
	if (ret)
		return ret;
	sqlite3_bind_text(stmt, 1, now, -1, SQLITE_STATIC);
	ret = wfs_fsck_step(run, stmt);
	*ret_was_cut = ret > 0 && !run->clean;
	sqlite3_finalize(stmt);
	return WFS_MIN(ret, 0);
}

static int check_strays(struct wfs_fsck_run *run)
{
	struct scan scan = { .run = run };
	int ret;

	if (run->data_fd < 0) {
		wfs_fsck_report_at(run, "data-file-missing", "data", "the directory is missing");
		return 0;
	}
	wfs_fsck_begin(run, "data-file-stray");
	ret = read_last_id(run, &scan.last_id);
	if (ret == 0)
		ret = read_was_cut(run, &scan.was_cut);
	if (ret == 0)
		ret = wfs_fsck_query(run, "SELECT 1 FROM data_file WHERE id = ?", &scan.has_row);
	if (ret == 0 && (ret = wfs_listdir(run->data_fd, ".", check_directory, &scan)) != 0)
		wfs_err_errno(run->err, ret, "%s/data", run->path);
	sqlite3_finalize(scan.has_row);
	return ret;
}

/* ---- extents ---- */

/* The data file that the walk is in. */
struct extent_walk {
	bool active;
	int64_t file;
	bool present;
	uint64_t file_size; /* on the disk */
	uint64_t end;       /* the furthest byte that an extent before reached */
	int64_t end_owner;  /* whose that was */
};

static void begin_file(struct wfs_fsck_run *run, struct extent_walk *w, int64_t file)
{
	char path[WFS_FSCK_PATH_SIZE];
	struct stat st;

	wfs_fsck_data_path(file, path);
	*w = (struct extent_walk){ .active = true, .file = file };
	w->present = !is_missing(run, file) &&
		     fstatat(run->data_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
		     S_ISREG(st.st_mode);
	w->file_size = w->present ? (uint64_t)st.st_size : 0;
}

static void check_extent(struct wfs_fsck_run *run, struct extent_walk *w, int64_t id,
	int64_t offset, int64_t length)
{
	uint64_t end = 0;
	bool sane = offset >= 0 && length > 0 &&
		    !wfs_add_overflows((uint64_t)offset, (uint64_t)length, &end);

	if (wfs_fsck_is_excused(run, id))
		return;
	if (!sane || (w->present && end > w->file_size &&
			     wfs_fsck_still(run, WFS_FSCK_STILL_THERE, id, w->file)))
		wfs_fsck_report(run, "extent-beyond-end", "object", id,
			"offset %lld, length %lld; data file %lld has %llu bytes",
			(long long)offset, (long long)length, (long long)w->file,
			(unsigned long long)w->file_size);
	if (!sane)
		return;
	if ((uint64_t)offset < w->end)
		wfs_fsck_report(run, "extent-overlap", "object", id,
			"its extent in data file %lld begins at %lld, before the end of that of "
			"object %lld at %llu", (long long)w->file, (long long)offset,
			(long long)w->end_owner, (unsigned long long)w->end);
	if (end > w->end) {
		w->end = end;
		w->end_owner = id;
	}
}

static int check_extents(struct wfs_fsck_run *run)
{
	struct extent_walk w = { .active = false };
	sqlite3_stmt *stmt;
	int ret;

	wfs_fsck_begin(run, "extent-overlap");
	ret = wfs_fsck_query(run,
		"SELECT id, data_file, offset, length FROM object WHERE data_file IS NOT NULL"
		" ORDER BY data_file, offset", &stmt);
	while (ret >= 0 && (ret = wfs_fsck_step(run, stmt)) > 0) {
		int64_t file = sqlite3_column_int64(stmt, 1);

		if (!w.active || w.file != file)
			begin_file(run, &w, file);
		check_extent(run, &w, sqlite3_column_int64(stmt, 0), sqlite3_column_int64(stmt, 2),
			sqlite3_column_int64(stmt, 3));
	}
	sqlite3_finalize(stmt);
	return ret;
}

/* ---- whole copies ---- */

/* A copy that is too short is read as EIO; one that is too long is not what was sealed. */
static void check_whole_copy(struct wfs_fsck_run *run, int64_t manifest, int64_t file, int64_t size)
{
	char path[WFS_FSCK_PATH_SIZE];
	struct stat st;

	wfs_fsck_data_path(file, path);
	if (run->data_fd < 0 || fstatat(run->data_fd, path, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
	    !S_ISREG(st.st_mode))
		return; /* that is found elsewhere */
	if (st.st_size != size && wfs_fsck_still(run, WFS_FSCK_STILL_WHOLE, manifest, file))
		wfs_fsck_report(run, "whole-copy-size", "manifest", manifest,
			"size is %lld, but its whole copy, data file %lld, has %lld bytes",
			(long long)size, (long long)file, (long long)st.st_size);
}

static int check_whole_copies(struct wfs_fsck_run *run)
{
	sqlite3_stmt *stmt;
	int ret;

	wfs_fsck_begin(run, "whole-copy-size");
	ret = wfs_fsck_query(run,
		"SELECT id, whole, size FROM manifest WHERE whole IS NOT NULL AND refs <> 0", &stmt);
	while (ret >= 0 && (ret = wfs_fsck_step(run, stmt)) > 0)
		check_whole_copy(run, sqlite3_column_int64(stmt, 0), sqlite3_column_int64(stmt, 1),
			sqlite3_column_int64(stmt, 2));
	sqlite3_finalize(stmt);
	return ret;
}

int wfs_fsck_data(struct wfs_fsck_run *run)
{
	int ret = check_files_present(run);

	if (ret == 0)
		ret = check_strays(run);
	if (ret == 0)
		ret = check_extents(run);
	if (ret == 0)
		ret = check_whole_copies(run);
	return ret;
}
