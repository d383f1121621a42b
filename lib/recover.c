#include "lib/recover.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/file.h"
#include "lib/flush.h"
#include "lib/gate.h"
#include "lib/power.h"
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

static int flush_one(struct wfs_store *s, const struct wfs_attr *a, void *ctx)
{
	(void)ctx;
	return a->verdict == WFS_VERDICT_DAMAGED ? 0 : wfs_flush_or_report(s, a->ino);
}

int wfs_recover_flush_dirty(struct wfs_store *s)
{
	return wfs_seal_each(s, flush_one, NULL);
}

/* Data files are made before their row is committed; at most these are without one. */
int wfs_recover_uncommitted(struct wfs_store *s)
{
	uint64_t last = 0;
	int ret = wfs_db_begin_read(&s->db);

	if (ret)
		return ret;
	ret = wfs_db_end(&s->db, wfs_db_number(&s->db, WFS_Q_DATA_LAST_ID, &last, ""));
	if (ret >= 0 && last > INT64_MAX)
		return -EUCLEAN;
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

/* A driver that was ended in the middle of a clone has left the file closed off that the clone was for. */
static int reopen(struct wfs_store *s, uint64_t data_file, struct wfs_err *err)
{
	int ret = wfs_datafile_reopen(&s->datafiles, data_file);

	/* Any other error is one of looking, or of a disk that has no such flag: reading will tell. */
	return ret != -EPERM ? 0 : wfs_err_set(err, ret, "closed-off", WFS_NO_OFFSET,
		"data file %llu has been made immutable by a mount of root that was killed: let root mount "
		"the store once", (unsigned long long)data_file);
}

struct judging {
	size_t n;
	struct wfs_err *err;
};

static int judge_again(struct wfs_store *s, const struct wfs_attr *a, void *ctx)
{
	struct judging *judging = ctx;
	struct wfs_file *f;
	struct stat st;
	int ret = wfs_datafile_stat(&s->datafiles, a->data_file, &st);

	judging->n++;
	if (ret == -ENOENT)
		return set_damaged(s, a->ino);
	if (ret == 0)
		ret = reopen(s, a->data_file, judging->err);
	if (ret == 0)
		ret = wfs_file_get(s, a->ino, &f);
	if (ret)
		return ret;
	ret = wfs_gate_close(s, f, NULL);
	wfs_file_unref(f);
	return ret == -EBADMSG ? 0 : ret;
}

int wfs_recover_filling(struct wfs_store *s)
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
	char id[WFS_BOOT_ID_SIZE];
	int ret = wfs_power_boot_id(id);

	if (ret == 0)
		ret = wfs_db_begin(&s->db);
	if (ret)
		return ret;
	ret = wfs_db_run(&s->db, WFS_Q_META_SET, "tt", WFS_META_BOOT_ID, id);
	if (ret == 0)
		ret = wfs_db_run(&s->db, WFS_Q_META_SET, "ti", WFS_META_CANNOT_PUNCH, UINT64_C(0));
	return wfs_db_end(&s->db, ret);
}

/* ---- what it met ---- */

static int note_recovery(struct wfs_store *s, const struct wfs_recovery *r)
{
	const struct {
		const char *key;
		uint64_t value;
	} rows[] = {
		{ WFS_META_RECOVERED_NS, (uint64_t)r->when_ns },
		{ WFS_META_RECOVERED_UNLINKED, r->unlinked },
		{ WFS_META_RECOVERED_DIRTY, r->dirty },
		{ WFS_META_RECOVERED_REPORTED, r->reported },
	};
	int ret = wfs_db_begin(&s->db);

	if (ret)
		return ret;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(rows) && ret == 0; i++)
		ret = wfs_db_run(&s->db, WFS_Q_META_SET, "ti", rows[i].key, rows[i].value);
	return wfs_db_end(&s->db, ret);
}

static int count_reported(struct wfs_store *s, uint64_t *ret)
{
	int err = wfs_db_begin_read(&s->db);

	*ret = 0;
	if (err)
		return err;
	err = wfs_db_number(&s->db, WFS_Q_RECOVER_REPORTED, ret, "");
	return wfs_db_end(&s->db, WFS_MIN(err, 0));
}

static int say_recovery(struct wfs_store *s, size_t orphans, size_t dirty)
{
	struct wfs_recovery r = { .when_ns = wfs_now_ns(), .unlinked = orphans, .dirty = dirty };
	int ret = count_reported(s, &r.reported);

	if (ret == 0)
		ret = note_recovery(s, &r);
	if (ret == 0 && (orphans || dirty))
		wfs_store_log(s, "the store was not unmounted: %zu unlinked files removed, "
			"%zu dirty files kept, to be sealed; %llu of them lack bytes, or may: see weightfs status",
			orphans, dirty, (unsigned long long)r.reported);
	return ret;
}

int wfs_recovery_read(struct wfs_store *s, struct wfs_recovery *ret)
{
	uint64_t when = 0;
	const struct {
		const char *key;
		uint64_t *value;
	} rows[] = {
		{ WFS_META_RECOVERED_NS, &when },
		{ WFS_META_RECOVERED_UNLINKED, &ret->unlinked },
		{ WFS_META_RECOVERED_DIRTY, &ret->dirty },
		{ WFS_META_RECOVERED_REPORTED, &ret->reported },
	};
	int err = wfs_db_begin_read(&s->db);

	*ret = (struct wfs_recovery){ .when_ns = 0 };
	if (err)
		return err;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(rows) && err >= 0; i++)
		err = wfs_db_number(&s->db, WFS_Q_META_GET, rows[i].value, "t", rows[i].key);
	ret->when_ns = (int64_t)when;
	return wfs_db_end(&s->db, WFS_MIN(err, 0));
}

/* It was never open before. */
static bool is_new(struct wfs_store *s)
{
	WFS_AUTO_FREE char *boot_id = NULL;

	return wfs_store_read_note(s, "boot_id", &boot_id) == 0 && !boot_id;
}

static int unput_tensors(struct wfs_store *s)
{
	size_t n = 0;
	int ret = wfs_power_unput(s, &n);

	if (n > 0)
		wfs_store_log(s, "the power was cut before %zu tensors that were written were on the disk: "
			"their models are as they were before", n);
	return ret;
}

static int after_power_cut(struct wfs_store *s)
{
	size_t n = 0;
	int ret = wfs_power_report(s, &n);

	if (n > 0)
		wfs_store_log(s, "the power was cut while the store was mounted: %zu files may lack bytes; "
			"'weightfs status' names them", n);
	return ret ? ret : wfs_power_sweep(s);
}

int wfs_recover(struct wfs_store *s, struct wfs_err *err)
{
	struct judging dirty = { .err = err };
	size_t orphans = 0;
	bool was_cut = false, was_new = is_new(s);
	int ret = wfs_power_was_cut(s, &was_cut);

	atomic_store(&s->collect_wanted, true);
	atomic_store(&s->settle_wanted, true);
	if (ret || s->db.was_clean)
		return ret ? ret : note_start(s);
	if (was_cut)
		ret = unput_tensors(s);
	if (!ret)
		ret = drop_orphans(s, &orphans);
	if (!ret)
		ret = wfs_recover_filling(s);
	if (!ret)
		ret = wfs_recover_uncommitted(s);
	if (!ret && was_cut)
		ret = wfs_power_make_missing(s);
	if (!ret)
		ret = wfs_seal_each(s, judge_again, &dirty);
	if (!ret && was_cut)
		ret = after_power_cut(s);
	/* Last: an open that ends before this has not seen to a power cut, and the next one has to know of it. */
	if (!ret)
		ret = note_start(s);
	return ret || was_new ? ret : say_recovery(s, orphans, dirty.n);
}
