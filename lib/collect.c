#include "lib/collect.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/array.h"
#include "lib/crash.h"
#include "lib/damage.h"
#include "lib/datafile_state.h"
#include "lib/hold.h"
#include "lib/manifest.h"
#include "lib/reserve.h"
#include "lib/store_priv.h"
#include "lib/whole.h"

#define OBJECTS_AT_ONCE 1000 /* of a dead manifest, in one transaction */
#define MANIFESTS_AT_ONCE 64 /* in one transaction */
#define FILES_AT_ONCE 256    /* data files in one round */

struct work {
	uint64_t id;
	enum wfs_data_state state;
	uint64_t holes;
	bool done;
	bool spare; /* emptied and kept: its row stays */
};

bool wfs_collect_wanted(struct wfs_store *s)
{
	return atomic_load(&s->collect_wanted);
}

/* ---- dead manifests ---- */

/* 1: took apart one, or a part of one; 0: there is none; -errno. */
static int dismantle_one(struct wfs_store *s)
{
	bool left = false;
	uint64_t id;
	int found = wfs_db_number(&s->db, WFS_Q_MANIFEST_DEAD, &id, "");

	if (found > 0)
		found = wfs_manifest_dismantle(&s->db, id, OBJECTS_AT_ONCE, &left);
	else
		return found;
	if (left)
		atomic_store(&s->settle_wanted, true);
	return found < 0 ? found : 1;
}

/* In one transaction, until somebody else wants to make one. 1 if there may be more. */
static int dismantle_some(struct wfs_store *s)
{
	int more = wfs_db_begin(&s->db);

	if (more)
		return more;
	for (unsigned n = 0; n < MANIFESTS_AT_ONCE; n++) {
		more = dismantle_one(s);
		if (more <= 0 || wfs_db_is_wanted(&s->db))
			break;
	}
	return wfs_db_end(&s->db, more);
}

static int dismantle_all(struct wfs_store *s)
{
	int more, tries = 0;

	do
		more = dismantle_some(s);
	while (more > 0 || (more == -ENOSPC && wfs_reserve_make_room(s, &tries)));
	return more;
}

/* ---- whole copies ---- */

/* One manifest in one transaction. 1 if there may be more behind *after. */
static int settle_next(struct wfs_store *s, uint64_t *after)
{
	uint64_t manifest;
	int found = wfs_db_begin(&s->db);

	if (found)
		return found;
	found = wfs_whole_next(&s->db, after, &manifest);
	if (found > 0) {
		found = wfs_whole_settle(&s->db, manifest, s->share_block);
		if (found == 0)
			found = 1;
	}
	return wfs_db_end(&s->db, found);
}

/* What the manifests that were taken apart have left to one file alone may live in its whole copy. */
static int settle_all(struct wfs_store *s)
{
	uint64_t after = 0;
	int more = 0;

	if (!atomic_exchange(&s->settle_wanted, false))
		return 0;
	while ((more = settle_next(s, &after)) > 0)
		;
	if (more)
		atomic_store(&s->settle_wanted, true);
	return more == -ENOSPC ? 0 : more; /* it can wait */
}

/* ---- data files ---- */

static int list_work(struct wfs_store *s, uint64_t after, struct work *work, size_t *n)
{
	sqlite3_stmt *row;
	int more = wfs_db_begin_read(&s->db);

	*n = 0;
	if (more)
		return more;
	for (more = wfs_db_first(&s->db, WFS_Q_DATA_WORK, &row, "ii", after,
		     (uint64_t)FILES_AT_ONCE);
		more > 0; more = wfs_db_next(&s->db, row)) {
		work[(*n)++] = (struct work){
			.id = (uint64_t)sqlite3_column_int64(row, 0),
			.state = (enum wfs_data_state)sqlite3_column_int(row, 1),
			.holes = (uint64_t)sqlite3_column_int64(row, 2),
		};
	}
	return wfs_db_end(&s->db, more);
}

/* A range of a pack that no object lives in. */
struct gap {
	uint64_t offset, length;
};

struct gaps {
	struct gap *list;
	size_t n, room;
};

/* Whole blocks only: a part of one gives nothing back. */
static int add_gap(struct gaps *gaps, uint64_t from, uint64_t to, uint64_t block)
{
	from = (from + block - 1) / block * block;
	to = to / block * block;
	if (to <= from)
		return 0;
	if (WFS_ARRAY_ROOM(gaps->list, gaps->n, gaps->room))
		return -ENOMEM;
	gaps->list[gaps->n++] = (struct gap){ from, to - from };
	return 0;
}

static int find_gaps(struct wfs_store *s, uint64_t id, const struct stat *st, struct gaps *gaps)
{
	uint64_t block = (uint64_t)st->st_blksize, end = 0;
	uint64_t size = ((uint64_t)st->st_size + block - 1) / block * block;
	sqlite3_stmt *row;
	uint64_t manifest;
	int more, err = 0;

	more = wfs_db_begin_read(&s->db);
	if (more)
		return more;
	more = wfs_whole_of(&s->db, id, &manifest);
	if (more) /* a whole copy has none */
		return wfs_db_end(&s->db, WFS_MIN(more, 0));
	for (more = wfs_db_first(&s->db, WFS_Q_OBJECTS_OF_FILE, &row, "i", id); more > 0;
		more = wfs_db_next(&s->db, row)) {
		uint64_t offset = (uint64_t)sqlite3_column_int64(row, 2);
		uint64_t behind = 0;

		if (wfs_add_overflows(offset, (uint64_t)sqlite3_column_int64(row, 3), &behind) ||
			behind > INT64_MAX)
			err = -EUCLEAN;
		else if (!err && offset > end)
			err = add_gap(gaps, end, offset, block);
		end = err ? end : WFS_MAX(end, behind);
	}
	if (!err && more == 0)
		err = add_gap(gaps, end, size, block);
	return wfs_db_end(&s->db, more < 0 ? more : err);
}

/* For `weightfs status`, which is another process. A note that fails is missing there, no more. */
static void note_punching(struct wfs_store *s)
{
	int ret = wfs_db_begin(&s->db);

	if (ret == 0)
		ret = wfs_db_end(&s->db, wfs_db_run(&s->db, WFS_Q_META_SET, "ti",
			WFS_META_CANNOT_PUNCH, UINT64_C(1)));
	(void)ret;
}

static int punch_gaps(struct wfs_store *s, struct wfs_datafile *df, const struct gaps *gaps)
{
	int ret = 0;
	int fd = wfs_datafile_use_to_write(&s->datafiles, df);

	if (fd < 0)
		return fd;
	for (size_t i = 0; i < gaps->n && ret == 0; i++)
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    (off_t)gaps->list[i].offset, (off_t)gaps->list[i].length) != 0)
			ret = -errno;
	wfs_datafile_unuse(&s->datafiles, df);
	if (ret == -EOPNOTSUPP && !atomic_exchange(&s->cannot_punch, true)) {
		wfs_store_log(s, "%s: this disk cannot punch holes: space shared with or "
			"dropped from a part of a file is given back when all of it is dropped",
			s->path);
		note_punching(s);
	}
	return ret;
}

static int punch(struct wfs_store *s, const struct work *work, struct wfs_datafile *df)
{
	struct gaps gaps = { NULL, 0, 0 };
	struct stat st;
	int ret = wfs_datafile_stat(&s->datafiles, work->id, &st);

	if (ret == 0)
		ret = find_gaps(s, work->id, &st, &gaps);
	/* Not before it is durable that nothing lives there. Nothing can move in: packs do not grow. */
	if (ret == 0)
		ret = wfs_store_sync(s);
	wfs_crash_at("collect-before-punch");
	if (ret == 0)
		ret = punch_gaps(s, df, &gaps);
	wfs_crash_at("collect-after-punch");
	free(gaps.list);
	return ret;
}

static void log_given_back(struct wfs_store *s, const struct work *work)
{
	char path[WFS_DATAFILE_PATH_SIZE];

	if (!s->options.verbose || !(work->done || work->spare))
		return;
	wfs_datafile_path(work->id, path);
	wfs_store_log(s, "gave back %s%s", work->state == WFS_DATA_DOOMED ? "" : "dead ranges of ",
		path);
}

/* A mapping may be all that is left of who had it open. */
static bool is_nobodys(struct wfs_store *s, struct wfs_datafile *df)
{
	return !atomic_load(&s->is_direct) || wfs_datafile_is_ours(&s->datafiles, df);
}

/* A file that somebody has open waits for the next time. */
static int collect_unheld(struct wfs_store *s, struct work *work)
{
	struct wfs_datafile *df = wfs_datafile_get(&s->datafiles, work->id);
	int ret = 0;

	if (!df)
		return -ENOMEM;
	if (wfs_datafile_begin_collect(&s->datafiles, df)) {
		bool is_ours = is_nobodys(s, df);

		if (work->state == WFS_DATA_DOOMED && is_ours)
			work->spare = wfs_spare_keep(s, df);
		wfs_crash_at("collect-before-remove");
		if (work->state == WFS_DATA_DOOMED && !work->spare)
			ret = wfs_datafile_remove(&s->datafiles, work->id);
		else if (work->state != WFS_DATA_DOOMED)
			ret = is_ours ? punch(s, work, df) : -EBUSY;
		wfs_datafile_end_collect(&s->datafiles, df);
		work->done = ret == 0 && !work->spare;
		log_given_back(s, work);
	}
	wfs_datafile_unref(&s->datafiles, df);
	return ret == -EOPNOTSUPP || ret == -EBUSY ? 0 : ret;
}

/* So does everything while a backup copies (lib/backup.h). */
static int collect_file(struct wfs_store *s, struct work *work)
{
	int ret;

	if (!wfs_hold_enter(s->lock_fd))
		return 0;
	ret = collect_unheld(s, work);
	wfs_hold_leave(s->lock_fd);
	return ret;
}

static int forget_one(struct wfs_store *s, const struct work *work)
{
	if (work->state == WFS_DATA_DOOMED)
		return wfs_db_run(&s->db, WFS_Q_DATA_DELETE, "i", work->id);
	/* Only if nothing more died in it since. */
	return wfs_db_run(&s->db, WFS_Q_DATA_PUNCHED, "ii", work->id, work->holes);
}

static int forget_done(struct wfs_store *s, const struct work *work, size_t n)
{
	int ret = wfs_db_begin(&s->db);

	if (ret)
		return ret;
	for (size_t i = 0; i < n && ret == 0; i++)
		if (work[i].done)
			ret = forget_one(s, &work[i]);
	return wfs_db_end(&s->db, ret);
}

static bool is_among(uint64_t id, const uint64_t *ids, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (ids[i] == id)
			return true;
	return false;
}

static bool can_do(struct wfs_store *s, const struct work *work)
{
	if (work->spare)
		return false;
	if (work->state == WFS_DATA_FILLING)
		return false; /* an unseal is at it */
	return work->state == WFS_DATA_DOOMED || !atomic_load(&s->cannot_punch);
}

/* One round: up to FILES_AT_ONCE files behind `*after`. 1 if there may be more. */
static int collect_some(struct wfs_store *s, struct work *work, uint64_t *after)
{
	/* Listed first: one that is taken from here on is still in this list, and left alone. */
	uint64_t spares[WFS_SPARES];
	size_t n, left = 0, n_spares = wfs_spare_list(s, spares);
	int ret = list_work(s, *after, work, &n);

	/* What died with damage in it may be another's bytes soon. */
	if (ret == 0 && ((n > 0 && wfs_damage_is_any(s)) || atomic_load(&s->damage_stale)))
		ret = wfs_damage_load(s);
	if (ret || n == 0)
		return ret;
	for (size_t i = 0; i < n; i++)
		work[i].spare = is_among(work[i].id, spares, n_spares);
	*after = work[n - 1].id;
	/* What was read here is durable before any byte of it is given back. */
	ret = wfs_store_sync(s);
	for (size_t i = 0; i < n && ret == 0; i++) {
		if (can_do(s, &work[i]))
			ret = collect_file(s, &work[i]);
		left += can_do(s, &work[i]) && !work[i].done;
	}
	if (left)
		atomic_store(&s->collect_wanted, true);
	wfs_crash_at("collect-before-forget");
	if (ret == 0)
		ret = forget_done(s, work, n);
	wfs_crash_at("collect-after-forget");
	/* The bytes are given back; the rows can wait. The reserve is for what gives bytes back. */
	if (ret == -ENOSPC) {
		atomic_store(&s->collect_wanted, true);
		ret = 0;
	}
	return ret ? ret : n == FILES_AT_ONCE;
}

int wfs_collect(struct wfs_store *s)
{
	WFS_AUTO_FREE struct work *work = calloc(FILES_AT_ONCE, sizeof(*work));
	uint64_t after = 0;
	int ret;

	if (!work)
		return -ENOMEM;
	pthread_mutex_lock(&s->collect_lock);
	atomic_store(&s->collect_wanted, false);
	ret = dismantle_all(s);
	wfs_crash_at("collect-after-dismantle");
	if (ret == 0)
		ret = settle_all(s);
	while (ret == 0 && (ret = collect_some(s, work, &after)) > 0)
		ret = 0;
	if (ret)
		atomic_store(&s->collect_wanted, true);
	pthread_mutex_unlock(&s->collect_lock);
	return ret;
}
