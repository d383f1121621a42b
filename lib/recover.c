#include "lib/recover.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/file.h"
#include "lib/gate.h"
#include "lib/seal.h"
#include "lib/store_priv.h"

#define BATCH 1000

/* Ids behind the last row whose files may exist: creations that a crash undid. */
#define LOOK_AHEAD 64

static int next_orphans(struct wfs_store *s, uint64_t *inos, size_t *n)
{
	sqlite3_stmt *row;
	int more = wfs_db_begin_read(&s->db);

	*n = 0;
	if (more)
		return more;
	for (more = wfs_db_first(&s->db, WFS_Q_INODE_ORPHANS, &row, "i", (uint64_t)BATCH);
		more > 0; more = wfs_db_next(&s->db, row))
		inos[(*n)++] = (uint64_t)sqlite3_column_int64(row, 0);
	return wfs_db_end(&s->db, more);
}

static int drop_orphans(struct wfs_store *s, size_t *dropped)
{
	WFS_AUTO_FREE uint64_t *inos = calloc(BATCH, sizeof(*inos));
	uint64_t first = 0;
	size_t n;
	int ret;

	if (!inos)
		return -ENOMEM;
	do {
		ret = next_orphans(s, inos, &n);
		/* An index that the table does not follow names the same ones for ever. */
		if (ret == 0 && n > 0 && inos[0] == first)
			ret = -EUCLEAN;
		first = n > 0 ? inos[0] : 0;
		if (ret == 0 && n > 0)
			ret = wfs_name_drop(s, inos, n);
		*dropped += n;
	} while (ret == 0 && n > 0);
	return ret;
}

int wfs_recover_orphans(struct wfs_store *s)
{
	size_t dropped = 0;

	return drop_orphans(s, &dropped);
}

int wfs_recover_flush_dirty(struct wfs_store *s)
{
	WFS_AUTO_FREE uint64_t *inos = NULL;
	size_t n = 0;
	int ret = wfs_seal_list(s, &inos, &n);

	for (size_t i = 0; i < n && ret == 0; i++) {
		struct wfs_attr a;

		if (wfs_name_getattr(s, inos[i], &a) == 0 && a.data_file &&
			a.verdict != WFS_VERDICT_DAMAGED)
			ret = wfs_store_flush_later(s, a.data_file);
	}
	return ret;
}

/* The last id that data files were given, and the last that one has: more only in a damaged store. */
static int last_ids(struct wfs_store *s, uint64_t *given, uint64_t *had)
{
	int ret = wfs_db_number(&s->db, WFS_Q_DATA_LAST_ID, given, "");

	if (ret >= 0)
		ret = wfs_db_number(&s->db, WFS_Q_DATA_MAX_ID, had, "");
	return ret;
}

/* Data files are made before their row is committed; at most these are without one. */
int wfs_recover_uncommitted(struct wfs_store *s)
{
	uint64_t given = 0, had = 0, last;
	int ret = wfs_db_begin_read(&s->db);

	if (ret)
		return ret;
	ret = wfs_db_end(&s->db, last_ids(s, &given, &had));
	if (ret >= 0 && (given > INT64_MAX || had > given))
		return -EUCLEAN;
	last = given;
	for (uint64_t id = last + 1; id <= last + LOOK_AHEAD && ret >= 0; id++)
		ret = wfs_datafile_remove(&s->datafiles, id);
	return ret < 0 ? ret : 0;
}

static int set_damaged(struct wfs_store *s, uint64_t ino)
{
	int ret = wfs_db_begin(&s->db);

	if (ret)
		return ret;
	ret = wfs_db_run(&s->db, WFS_Q_INODE_SET_VERDICT, "itti", (uint64_t)WFS_VERDICT_DAMAGED,
		"data-file-missing", "the data file with its bytes is gone from the store", ino);
	return wfs_db_end(&s->db, ret);
}

static int judge_again(struct wfs_store *s, uint64_t ino)
{
	struct wfs_file *f;
	struct wfs_attr a;
	struct stat st;
	int ret = wfs_name_getattr(s, ino, &a);

	if (ret || !a.data_file)
		return ret == -ENOENT ? 0 : ret;
	ret = wfs_datafile_stat(&s->datafiles, a.data_file, &st);
	if (ret == -ENOENT)
		return set_damaged(s, ino);
	if (ret == 0)
		ret = wfs_file_get(s, ino, &f);
	if (ret)
		return ret;
	ret = wfs_gate_close(s, f, NULL);
	wfs_file_unref(f);
	return ret == -EBADMSG ? 0 : ret;
}

static int judge_dirty(struct wfs_store *s, size_t *ret_n)
{
	WFS_AUTO_FREE uint64_t *inos = NULL;
	int ret = wfs_seal_list(s, &inos, ret_n);

	for (size_t i = 0; i < *ret_n && ret == 0; i++)
		ret = judge_again(s, inos[i]);
	return ret;
}

static int doom_filling(struct wfs_store *s)
{
	int ret = wfs_db_begin(&s->db);

	if (ret)
		return ret;
	return wfs_db_end(&s->db, wfs_db_run(&s->db, WFS_Q_DATA_DOOM_FILLING, ""));
}

/*
 * The boot during which the store was last open: a different one means that the
 * power may have gone. Whether the disk punches holes is to be seen anew: the store
 * may have been moved.
 */
static int note_start(struct wfs_store *s)
{
	char id[64] = "unknown";
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
	int ret;

	if (f) {
		if (fgets(id, sizeof(id), f))
			id[strcspn(id, "\n")] = '\0';
		fclose(f);
	}
	ret = wfs_db_begin(&s->db);
	if (ret)
		return ret;
	ret = wfs_db_run(&s->db, WFS_Q_META_SET, "tt", "boot_id", id);
	if (ret == 0)
		ret = wfs_db_run(&s->db, WFS_Q_META_SET, "ti", WFS_META_CANNOT_PUNCH, UINT64_C(0));
	return wfs_db_end(&s->db, ret);
}

int wfs_recover(struct wfs_store *s, struct wfs_err *err)
{
	size_t orphans = 0, dirty = 0;
	int ret = note_start(s);

	(void)err;
	atomic_store(&s->collect_wanted, true);
	atomic_store(&s->settle_wanted, true);
	if (ret || s->db.was_clean)
		return ret;
	ret = drop_orphans(s, &orphans);
	if (!ret)
		ret = doom_filling(s);
	if (!ret)
		ret = wfs_recover_uncommitted(s);
	if (!ret)
		ret = judge_dirty(s, &dirty);
	if (!ret && (orphans || dirty))
		wfs_store_log(s, "the store was not unmounted: %zu unlinked files removed, "
			"%zu dirty files kept, to be sealed", orphans, dirty);
	return ret;
}
