/* Sealed to dirty: lib/file_priv.h, DESIGN §4.5. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "lib/crash.h"
#include "lib/datafile_state.h"
#include "lib/file_priv.h"
#include "lib/manifest.h"
#include "lib/quota.h"
#include "lib/reserve.h"
#include "lib/whole.h"

#define CHUNK ((size_t)1 << 20)

/* ---- copying a content into a data file ---- */

static int copy_part(struct wfs_content *from, int fd, uint64_t at, uint64_t len, char *buf)
{
	while (len > 0) {
		ssize_t n = wfs_content_read(from, buf, WFS_MIN(CHUNK, len), at);
		ssize_t put;

		if (n <= 0)
			return n < 0 ? (int)n : -EIO;
		put = wfs_pwrite_some(fd, buf, (size_t)n, at);
		if (put < n)
			return put < 0 ? (int)put : -ENOSPC;
		at += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

/* Of a whole file the disk can share the blocks; of others the data between the holes is copied. */
int wfs_content_copy_data(struct wfs_content *from, uint64_t at, uint64_t length, int fd)
{
	WFS_AUTO_FREE char *buf = malloc(CHUNK);
	uint64_t stop = at + length;
	int64_t begin, end = (int64_t)at;

	if (!buf)
		return -ENOMEM;
	while ((uint64_t)end < stop) {
		int err;

		begin = wfs_content_seek(from, (uint64_t)end, SEEK_DATA);
		if (begin < 0 || (uint64_t)begin >= stop)
			return begin == -ENXIO || begin >= 0 ? 0 : (int)begin;
		end = wfs_content_seek(from, (uint64_t)begin, SEEK_HOLE);
		if (end < 0)
			return (int)end;
		end = (int64_t)WFS_MIN((uint64_t)end, stop);
		err = copy_part(from, fd, (uint64_t)begin, (uint64_t)(end - begin), buf);
		if (err)
			return err;
	}
	return 0;
}

static int reflink(struct wfs_content *from, int fd, uint64_t length)
{
	struct wfs_datafile *whole = wfs_content_whole(from);
	off_t in_off = 0, out_off = 0;
	int in_fd;

	if (!whole || atomic_load(&whole->has_bad))
		return -EXDEV;
	in_fd = wfs_datafile_use(from->table, whole);
	if (in_fd < 0)
		return in_fd;
	while ((uint64_t)out_off < length) {
		ssize_t n = copy_file_range(in_fd, &in_off, fd, &out_off, length - (uint64_t)out_off,
			0);

		if (n <= 0)
			break;
	}
	wfs_datafile_unuse(from->table, whole);
	return (uint64_t)out_off == length ? 0 : -EXDEV;
}

int wfs_content_copy(struct wfs_content *from, uint64_t length, struct wfs_datafile *to)
{
	int fd = wfs_datafile_use_to_write(from->table, to);
	int ret;

	if (fd < 0)
		return fd;
	ret = ftruncate(fd, (off_t)length) != 0 ? -errno : 0;
	/* copy_file_range would fill holes: only where the whole file is data. */
	if (!ret && wfs_content_seek(from, 0, SEEK_HOLE) >= (int64_t)length)
		ret = reflink(from, fd, length);
	else if (!ret)
		ret = -EXDEV;
	if (ret == -EXDEV)
		ret = wfs_content_copy_data(from, 0, length, fd);
	wfs_datafile_unuse(from->table, to);
	return ret;
}

/* ---- in place ---- */

/* Within a transaction: no object stays in the data file. -EXDEV if others need one. */
static int empty_pack(struct wfs_store *s, uint64_t manifest, uint64_t data_file)
{
	struct wfs_db *db = &s->db;
	bool left = false;
	uint64_t one;
	int ret = wfs_db_number(db, WFS_Q_DATA_IN_USE, &one, "i", data_file);
	bool is_used = ret > 0;

	if (ret < 0)
		return ret;
	if (is_used) {
		ret = wfs_manifest_owns(db, manifest, data_file);
		if (ret <= 0)
			return ret ? ret : -EXDEV;
	}
	ret = manifest ? wfs_manifest_unref(db, manifest) : 0;
	while (ret == 0 && is_used && (ret = wfs_manifest_dismantle(db, manifest, 1000, &left)) > 0)
		ret = 0;
	if (left) {
		atomic_store(&s->settle_wanted, true);
		atomic_store(&s->collect_wanted, true);
	}
	return ret;
}

/* Within a transaction: the manifest and its objects go, the pack is staging again. */
static int take_back(struct wfs_file *f, const struct wfs_content *old, uint64_t data_file)
{
	struct wfs_db *db = &f->store->db;
	int ret = empty_pack(f->store, old->manifest, data_file);

	if (ret)
		return ret;
	ret = wfs_db_run(db, WFS_Q_INODE_MAKE_DIRTY, "oii", data_file, old->size, f->ino);
	if (ret == 0 && wfs_db_changes(db) != 1)
		ret = -ESTALE;
	if (ret == 0)
		ret = wfs_db_run(db, WFS_Q_DATA_STATE, "ii", (uint64_t)WFS_DATA_STAGING, data_file);
	return ret == 0 && wfs_db_changes(db) != 1 ? -ESTALE : ret;
}

static int trim(struct wfs_content *c, uint64_t size)
{
	uint64_t have;
	int fd;
	int ret = wfs_content_size(c, &have);

	if (ret || have <= size)
		return ret;
	fd = wfs_datafile_use_to_write(c->table, c->staging);
	if (fd < 0)
		return fd;
	ret = ftruncate(fd, (off_t)size) != 0 ? -errno : 0;
	wfs_datafile_unuse(c->table, c->staging);
	return ret;
}

static int set_mtime(struct wfs_file *f, uint64_t data_file, int64_t mtime_ns)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, wfs_timespec(mtime_ns) };

	return wfs_datafile_utimens(&f->store->datafiles, data_file, times);
}

/* -EXDEV where the data file is not this file's alone. */
/*
 * Has a view (lib/model.h) bytes of it, or somebody who reads just now? They are to see what was there. What is
 * only kept of models for the next time goes.
 */
static bool is_seen(struct wfs_file *f, struct wfs_content *old, struct wfs_datafile *df, bool is_pinned)
{
	unsigned own = 1 + is_pinned; /* of the content, and of who has it pinned */

	wfs_models_clear(f->store->models);
	if (wfs_datafile_count_refs(&f->store->datafiles, df) > own)
		return true;
	/* The file's own reference, and that of who unseals it. */
	return !is_pinned && atomic_load(&old->refs) > 2;
}

static int unseal_in_place(struct wfs_file *f, struct wfs_content *old, struct wfs_content **ret)
{
	/* What programs have open has the bytes of the file, wherever they were sealed to. */
	struct wfs_datafile *pinned = wfs_file_pinned(f);
	struct wfs_datafile *df = pinned ? pinned : wfs_content_whole(old);
	struct wfs_store *s = f->store;
	struct wfs_attr a;
	struct wfs_content *new;
	int err;

	/* What is damaged is not to become bytes like others. */
	if (!df || atomic_load(&df->has_bad) || wfs_datafile_is_collecting(&s->datafiles, df) ||
		!wfs_pin_may_reuse(f, df) ||
		is_seen(f, old, df, pinned != NULL))
		return -EXDEV;
	new = wfs_content_new_staging(&s->datafiles, df->id);
	err = new ? wfs_name_getattr(s, f->ino, &a) : -ENOMEM;
	wfs_crash_at("unseal-before-commit");
	if (!err)
		err = wfs_db_begin(&s->db);
	if (!err)
		err = wfs_db_end(&s->db, take_back(f, old, df->id));
	wfs_crash_at("unseal-after-commit");
	/* Before its first write: a power cut must not find a sealed file with other bytes. */
	if (!err)
		err = wfs_db_sync(&s->db);
	wfs_crash_at("unseal-after-sync");
	if (!err)
		err = trim(new, old->size);
	if (!err)
		err = set_mtime(f, df->id, a.mtime_ns);
	if (err)
		wfs_content_unref(new);
	else
		*ret = new;
	return err;
}

/* ---- by a copy ---- */

int wfs_filling_create(struct wfs_store *s, uint64_t *ret)
{
	int err = wfs_db_begin(&s->db);

	return err ? err : wfs_db_end(&s->db, wfs_staging_create(s, WFS_DATA_FILLING, ret));
}

static int publish(struct wfs_file *f, const struct wfs_content *old, uint64_t data_file,
	uint64_t size)
{
	struct wfs_db *db = &f->store->db;
	int ret = wfs_db_run(db, WFS_Q_INODE_MAKE_DIRTY, "oii", data_file, size, f->ino);

	if (ret == 0 && wfs_db_changes(db) != 1)
		ret = -ESTALE;
	if (ret == 0 && old->manifest)
		ret = wfs_manifest_unref(db, old->manifest);
	if (ret == 0)
		ret = wfs_db_run(db, WFS_Q_DATA_STATE, "ii", (uint64_t)WFS_DATA_STAGING, data_file);
	return ret;
}

/* Its room is there at once, even where the disk is too full for a transaction. */
static void empty_filling(struct wfs_store *s, uint64_t data_file)
{
	struct wfs_datafile *df = wfs_datafile_get(&s->datafiles, data_file);
	int ret = df ? wfs_datafile_empty(&s->datafiles, df) : -ENOMEM;

	if (ret)
		wfs_store_log(s, "a data file could not be emptied: %s", strerror(-ret));
	if (df)
		wfs_datafile_unref(&s->datafiles, df);
}

void wfs_filling_abandon(struct wfs_store *s, uint64_t data_file)
{
	int ret, tries = 0;

	empty_filling(s, data_file);
	do {
		ret = wfs_db_begin(&s->db);
		if (ret == 0)
			ret = wfs_db_end(&s->db, wfs_db_run(&s->db, WFS_Q_DATA_STATE, "ii",
				(uint64_t)WFS_DATA_DOOMED, data_file));
	} while (ret == -ENOSPC && wfs_reserve_make_room(s, &tries));
	if (ret == 0)
		atomic_store(&s->collect_wanted, true);
}

static int fill(struct wfs_file *f, struct wfs_content *old, uint64_t length,
	struct wfs_content *new)
{
	struct wfs_attr a;
	int err = wfs_content_copy(old, length, new->staging);

	/* What the file has now is on the disk; so is the copy, before it takes its place. */
	if (!err && length > 0)
		err = wfs_datafile_sync(&f->store->datafiles, new->staging);
	if (!err)
		err = wfs_name_getattr(f->store, f->ino, &a);
	/* Until somebody writes, the file is as old as it was. */
	return err ? err : set_mtime(f, new->staging->id, a.mtime_ns);
}

static int unseal_by_copy(struct wfs_file *f, struct wfs_content *old, uint64_t length,
	struct wfs_content **ret)
{
	struct wfs_store *s = f->store;
	struct wfs_content *new;
	uint64_t id;
	int err = length ? wfs_quota_take(s, length) : 0;

	if (!err)
		err = wfs_filling_create(s, &id);
	if (err)
		return err;
	new = wfs_content_new_staging(&s->datafiles, id);
	err = new ? fill(f, old, length, new) : -ENOMEM;
	wfs_crash_at("copy-before-commit");
	if (!err)
		err = wfs_db_begin(&s->db);
	if (!err)
		err = wfs_db_end(&s->db, publish(f, old, id, length));
	wfs_crash_at("copy-after-commit");
	if (err) {
		wfs_content_unref(new);
		wfs_filling_abandon(s, id);
		return err;
	}
	atomic_store(&s->collect_wanted, true);
	*ret = new;
	return 0;
}

/* ---- in place, by moving what others share ---- */

/*
 * Within a transaction: does nobody but this file use the data file? The database is
 * locked, so that nobody comes to it meanwhile, and who comes later finds its bytes
 * at the new place. `own` references of the file's are counted by the caller, and
 * each extent of `old` that is there is one more.
 */
static bool is_used_by_others(struct wfs_file *f, const struct wfs_content *old,
	struct wfs_datafile *df, unsigned own)
{
	for (size_t i = 0; i < old->n; i++)
		own += old->extents[i].df == df;
	return wfs_datafile_count_refs(&f->store->datafiles, df) > own;
}

static int swap(struct wfs_file *f, const struct wfs_content *old, struct wfs_datafile *df,
	unsigned own, uint64_t pack)
{
	struct wfs_db *db = &f->store->db;
	int ret = is_used_by_others(f, old, df, own) ? -ETXTBSY : 0;

	if (ret == 0)
		ret = wfs_db_run(db, WFS_Q_OBJECTS_MOVE, "ii", pack, df->id);
	if (ret == 0)
		ret = wfs_whole_move(db, df->id, pack);
	if (ret == 0)
		ret = wfs_db_run(db, WFS_Q_DATA_STATE, "ii", (uint64_t)WFS_DATA_PACK, pack);
	if (ret == 0)
		ret = wfs_db_run(db, WFS_Q_DATA_HOLED, "i", pack);
	return ret ? ret : publish(f, old, df->id, old->size);
}

/* A copy of all of `from`, at the same offsets, on the disk. */
static int copy_pack(struct wfs_store *s, struct wfs_datafile *from, struct wfs_content *to)
{
	struct wfs_content *whole = wfs_content_new_staging(&s->datafiles, from->id);
	uint64_t size;
	int ret = whole ? wfs_content_size(whole, &size) : -ENOMEM;

	if (ret == 0)
		ret = wfs_quota_take(s, size);
	if (ret == 0)
		ret = wfs_content_copy(whole, size, to->staging);
	wfs_content_unref(whole);
	return ret ? ret : wfs_datafile_sync(&s->datafiles, to->staging);
}

/*
 * Programs have the data file open or mapped, and other files share its bytes: these
 * are copied to a new pack for the others, and the data file is staging again.
 * -ETXTBSY if one of the others is in use.
 */
static int unseal_by_moving(struct wfs_file *f, struct wfs_content *old, struct wfs_datafile *df,
	struct wfs_content **ret)
{
	struct wfs_store *s = f->store;
	unsigned own = wfs_file_pinned(f) ? 2 : 1; /* `new`, and what programs have open */
	struct wfs_content *new, *pack;
	struct wfs_attr a;
	uint64_t id;
	int err = wfs_pin_may_reuse(f, df) ? wfs_name_getattr(s, f->ino, &a) : -ETXTBSY;

	if (!err)
		err = wfs_filling_create(s, &id);
	if (err)
		return err;
	new = wfs_content_new_staging(&s->datafiles, df->id);
	pack = wfs_content_new_staging(&s->datafiles, id);
	err = new && pack ? copy_pack(s, df, pack) : -ENOMEM;
	if (!err)
		err = wfs_db_begin(&s->db);
	if (!err)
		err = wfs_db_end(&s->db, swap(f, old, df, own, id));
	wfs_content_unref(pack);
	if (err) {
		wfs_content_unref(new);
		wfs_filling_abandon(s, id);
		return err;
	}
	atomic_store(&s->collect_wanted, true);
	*ret = new;
	/* As in place. */
	err = wfs_db_sync(&s->db);
	if (!err)
		err = trim(new, old->size);
	if (!err)
		err = set_mtime(f, df->id, a.mtime_ns);
	if (err)
		wfs_store_log(s, "inode %llu: %s, as it became dirty", (unsigned long long)f->ino,
			strerror(-err));
	return 0;
}

/* ---- into a file that was closed off ---- */

static int empty_again(struct wfs_file *f, struct wfs_datafile *df)
{
	struct wfs_datafiles *table = &f->store->datafiles;
	int fd = wfs_datafile_use_to_write(table, df);

	if (fd < 0)
		return fd;
	fd = ftruncate(fd, 0) != 0 ? -errno : 0;
	wfs_datafile_unuse(table, df);
	return fd ? fd : wfs_datafile_close_off(table, df);
}

/*
 * The bytes that a clone has brought go where programs have the file open. Until
 * now they could not write there; what one writes at the same time as this copies is
 * as if it had written before.
 */
static int unseal_into_hollow(struct wfs_file *f, struct wfs_content *old, uint64_t length,
	struct wfs_content **ret)
{
	struct wfs_datafile *df = wfs_file_pinned(f);
	struct wfs_store *s = f->store;
	struct wfs_content *new = wfs_content_new_staging(&s->datafiles, df->id);
	int err = new ? wfs_datafile_reopen(&s->datafiles, df->id) : -ENOMEM;

	if (!err)
		err = fill(f, old, length, new);
	if (!err)
		err = wfs_db_begin(&s->db);
	if (!err)
		err = wfs_db_end(&s->db, take_back(f, old, df->id));
	if (err) {
		wfs_content_unref(new);
		empty_again(f, df);
		return err;
	}
	wfs_pin_filled(f);
	*ret = new;
	return 0;
}

/* What a program has mapped, and closed, shows what becomes of the file, if that can be done. */
static struct wfs_datafile *still_mapped(struct wfs_file *f, struct wfs_content *old)
{
	struct wfs_datafile *df = wfs_content_whole(old);

	if (!df || wfs_datafile_is_collecting(&f->store->datafiles, df))
		return NULL;
	return wfs_pin_is_left(f, df) ? df : NULL;
}

int wfs_unseal(struct wfs_file *f, struct wfs_content *old, uint64_t keep,
	struct wfs_content **ret)
{
	uint64_t length = WFS_MIN(keep, old->size);
	struct wfs_datafile *pinned = wfs_file_pinned(f);
	struct wfs_datafile *used = pinned ? pinned : still_mapped(f, old);
	int err;

	if (wfs_pin_is_hollow(f))
		return unseal_into_hollow(f, old, length, ret);
	/* With nothing to keep, a new file: the old bytes stay until that is durable. */
	err = length > 0 || used ? unseal_in_place(f, old, ret) : -EXDEV;
	if (err == -EXDEV && used)
		err = unseal_by_moving(f, old, used, ret);
	if (err == -ETXTBSY && !pinned)
		err = -EXDEV;
	return err == -EXDEV ? unseal_by_copy(f, old, length, ret) : err;
}
