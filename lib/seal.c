#include "lib/seal.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/crash.h"
#include "lib/damage.h"
#include "lib/datafile_state.h"
#include "lib/manifest.h"
#include "lib/object.h"
#include "lib/reserve.h"
#include "lib/seal_priv.h"
#include "lib/whole.h"

/* How often the objects that were found may be gone by the time of the transaction. */
#define MAX_TRIES 20

static uint64_t count_fresh(const struct wfs_plan *p)
{
	uint64_t fresh = 0;

	for (size_t i = 0; i < p->n; i++)
		if (wfs_plan_is_new(&p->pieces[i]))
			fresh += p->pieces[i].length;
	return fresh;
}

static enum wfs_fate fate_of(const struct wfs_plan *p, uint64_t fresh, bool shares)
{
	if (p->size <= WFS_SMALL_FILE)
		return WFS_FATE_DB;
	if (fresh == p->size)
		return WFS_FATE_WHOLE;
	if (shares)
		return WFS_FATE_COPY;
	return fresh <= WFS_SMALL_REST ? WFS_FATE_DB : WFS_FATE_PART;
}

static int choose_fate(struct wfs_plan *p, enum wfs_fate *ret)
{
	uint64_t fresh = count_fresh(p);
	int shares = 0;

	if (p->size > WFS_SMALL_FILE && fresh < p->size)
		shares = wfs_plan_share(p);
	if (shares < 0)
		return shares;
	*ret = fate_of(p, fresh, shares > 0);
	return 0;
}

/* ---- the transaction ---- */

/*
 * Another seal may have recorded the same bytes since we looked. Objects from `own` on are of
 * this file, and were compared with the piece: one digest, and other bytes.
 */
static int check_still_new(struct wfs_db *db, const struct wfs_plan_piece *piece, uint64_t own)
{
	struct wfs_object o;
	int found = wfs_object_find(db, &piece->digest, piece->length, piece->last_compared, &o);

	return found < 0 ? found : found && o.id < own ? -ESTALE : 0;
}

static int read_bytes(const struct wfs_plan *p, const struct wfs_plan_piece *piece, uint8_t **ret)
{
	ssize_t n;

	*ret = malloc(piece->length);
	if (!*ret)
		return -ENOMEM;
	n = wfs_content_read(p->content, *ret, piece->length, piece->offset);
	return n < 0 ? (int)n : (uint64_t)n == piece->length ? 0 : -EBUSY;
}

static int insert_new(struct wfs_plan *p, const struct wfs_plan_piece *piece, bool into_db,
	uint64_t own, uint64_t *ret_id)
{
	struct wfs_object o = { .length = piece->length };
	WFS_AUTO_FREE uint8_t *bytes = NULL;
	struct wfs_db *db = &p->file->store->db;
	int ret = check_still_new(db, piece, own);

	if (ret == 0 && into_db)
		ret = read_bytes(p, piece, &bytes);
	if (ret)
		return ret;
	if (!into_db) {
		o.data_file = p->content->staging->id;
		o.offset = piece->offset;
	}
	*ret_id = piece->heals;
	if (piece->heals)
		return wfs_damage_replace(db, piece->heals, o.data_file, o.offset, bytes,
			piece->length);
	ret = wfs_object_insert(db, &piece->digest, &o, bytes);
	if (ret == 0)
		*ret_id = o.id;
	return ret;
}

static int insert_objects(struct wfs_plan *p, bool into_db, uint64_t *ids)
{
	uint64_t own = UINT64_MAX; /* the first that is inserted here; ids only grow */
	int ret = 0;

	for (size_t i = 0; i < p->n && ret == 0; i++) {
		const struct wfs_plan_piece *piece = &p->pieces[i];

		if (piece->object)
			ids[i] = piece->object;
		else if (piece->same_as != WFS_PLAN_NONE)
			ids[i] = ids[piece->same_as];
		else
			ret = insert_new(p, piece, into_db, own, &ids[i]);
		if (ret == 0 && own == UINT64_MAX && wfs_plan_is_new(piece))
			own = ids[i];
	}
	return ret;
}

static int settle_data_file(struct wfs_db *db, uint64_t id, enum wfs_fate fate)
{
	int ret;

	if (fate == WFS_FATE_DB)
		return wfs_db_run(db, WFS_Q_DATA_STATE, "ii", (uint64_t)WFS_DATA_DOOMED, id);
	ret = wfs_db_run(db, WFS_Q_DATA_STATE, "ii", (uint64_t)WFS_DATA_PACK, id);
	if (ret == 0 && fate == WFS_FATE_PART)
		ret = wfs_db_run(db, WFS_Q_DATA_HOLED, "i", id);
	return ret;
}

/* The inode names the manifest; its times are those of the staging file from here on. */
static int seal_inode(struct wfs_store *s, uint64_t ino, uint64_t data_file, uint64_t manifest,
	uint64_t size)
{
	struct wfs_attr a;
	int ret = wfs_inode_get(s, ino, &a);

	if (ret <= 0)
		return ret ? ret : -ENOENT;
	if (a.data_file != data_file)
		return -ENOENT;
	if (a.size != size)
		return -EBUSY;
	return wfs_db_run(&s->db, WFS_Q_INODE_SEAL, "oiiiii", manifest, size, a.blocks, a.mtime_ns,
		a.ctime_ns, ino);
}

int wfs_seal_record(struct wfs_plan *p, enum wfs_fate fate, uint64_t *ids,
	struct wfs_content **ret)
{
	struct wfs_store *s = p->file->store;
	uint64_t data_file = p->content->staging->id;
	uint64_t manifest;
	bool shared;
	int err = insert_objects(p, fate == WFS_FATE_DB, ids);

	if (!err)
		err = wfs_manifest_put(&s->db, ids, p->n, p->size, &manifest, &shared);
	if (!err)
		err = seal_inode(s, p->file->ino, data_file, manifest, p->size);
	/* Made by another seal meanwhile: that has a data file. Or made again, of which a part was lost. */
	if (!err && fate == WFS_FATE_COPY && shared)
		fate = wfs_plan_heals(p) ? WFS_FATE_PART : WFS_FATE_DB;
	if (!err && fate == WFS_FATE_WHOLE)
		err = wfs_manifest_set_solid(&s->db, manifest);
	if (!err && fate == WFS_FATE_COPY)
		err = wfs_whole_set(&s->db, manifest, data_file, p->shared);
	if (!err)
		err = settle_data_file(&s->db, data_file, fate);
	return err ? err : wfs_content_load(&s->db, &s->datafiles, manifest, ret);
}

int wfs_seal_record_empty(struct wfs_file *f, struct wfs_content *staging,
	struct wfs_content **ret)
{
	struct wfs_store *s = f->store;
	int err = seal_inode(s, f->ino, staging->staging->id, 0, 0);

	if (!err)
		err = settle_data_file(&s->db, staging->staging->id, WFS_FATE_DB);
	if (err)
		return err;
	*ret = wfs_content_new_empty(&s->datafiles);
	return *ret ? 0 : -ENOMEM;
}

bool wfs_seal_may_commit(const struct wfs_file *f, const struct wfs_content *staging)
{
	return f->writers == 0 && !f->changing && !atomic_load(&f->stop_seal) &&
	       f->content == staging;
}

/*
 * One transaction, under the file's lock; `p` NULL for an empty file. On success
 * the file has its sealed content.
 */
static int commit(struct wfs_file *f, struct wfs_content *staging, struct wfs_plan *p,
	enum wfs_fate fate, uint64_t *ids)
{
	struct wfs_store *s = f->store;
	struct wfs_content *sealed = NULL;
	int ret;

	wfs_crash_at("seal-before-commit");
	pthread_mutex_lock(&f->lock);
	ret = wfs_seal_may_commit(f, staging) ? wfs_db_begin(&s->db) : -EBUSY;
	if (ret == 0)
		ret = wfs_db_end(&s->db, p ? wfs_seal_record(p, fate, ids, &sealed)
					   : wfs_seal_record_empty(f, staging, &sealed));
	if (ret == 0) {
		wfs_crash_at("seal-after-commit");
		f->content = sealed;
	}
	pthread_mutex_unlock(&f->lock);
	if (ret)
		wfs_content_unref(sealed);
	else
		wfs_content_unref(staging); /* the file's own reference */
	return ret;
}

/* ---- the whole ---- */

void wfs_seal_log(const struct wfs_plan *p, enum wfs_fate fate)
{
	static const char *const where[] = {
		[WFS_FATE_WHOLE] = "a data file",
		[WFS_FATE_COPY] = "a data file that shares the blocks of the rest",
		[WFS_FATE_PART] = "part of a data file",
		[WFS_FATE_DB] = "the database",
	};
	struct wfs_store *s = p->file->store;
	WFS_AUTO_FREE char *path = NULL;

	if (!s->options.verbose || wfs_name_path(s, p->file->ino, &path) != 0)
		return;
	wfs_store_log(s, "sealed %s: %zu objects, %llu bytes, of which %llu are new and in %s", path,
		p->n, (unsigned long long)p->size, (unsigned long long)count_fresh(p), where[fate]);
}

void wfs_seal_healed(struct wfs_store *s)
{
	int ret = wfs_damage_load(s);

	wfs_damage_reload(s);
	wfs_store_log(s, "bytes that were damaged were saved anew, and are right again%s%s",
		ret ? "; reading them gives errors until the next mount: " : "",
		ret ? strerror(-ret) : "");
}

static int seal_plan(struct wfs_file *f, struct wfs_plan *p)
{
	WFS_AUTO_FREE uint64_t *ids = NULL;
	int ret = wfs_plan_hash(p);

	if (ret)
		return ret;
	ids = reallocarray(NULL, p->n, sizeof(*ids));
	if (!ids)
		return -ENOMEM;
	for (unsigned tries = 0; tries < MAX_TRIES; tries++) {
		enum wfs_fate fate;

		ret = wfs_plan_match(p);
		if (ret == 0)
			ret = choose_fate(p, &fate);
		if (ret)
			return ret;
		/* Sealed means that the bytes are on the disk. */
		wfs_crash_at("seal-before-sync");
		if (fate != WFS_FATE_DB)
			ret = wfs_store_sync_staging(f->store, p->content->staging);
		if (ret == 0)
			ret = commit(f, p->content, p, fate, ids);
		if (ret == 0)
			wfs_seal_log(p, fate);
		if (ret == 0 && wfs_plan_heals(p))
			wfs_seal_healed(f->store);
		if (ret != -ESTALE)
			return ret;
	}
	return -EBUSY;
}

static int check_holes(struct wfs_store *s, struct wfs_content *staging, uint64_t *ret_size)
{
	struct stat st;
	int ret = wfs_datafile_stat(&s->datafiles, staging->staging->id, &st);
	uint64_t held;

	if (ret)
		return ret == -ENOENT ? -EIO : ret;
	*ret_size = (uint64_t)st.st_size;
	held = (uint64_t)st.st_blocks * 512;
	return *ret_size > held && *ret_size - held > WFS_MAX_HOLES ? -EFBIG : 0;
}

int wfs_seal_check(struct wfs_file *f, struct wfs_content *staging, uint64_t *ret_size)
{
	int ret = check_holes(f->store, staging, ret_size);

	/* A mapping that outlived its handle could still change what is hashed. */
	if (!ret && atomic_load(&f->store->is_direct))
		ret = wfs_datafile_freeze(&f->store->datafiles, staging->staging);
	if (ret)
		return ret == -EBUSY ? -ETXTBSY : ret;
	/* Its bytes may be others than those that were written. */
	if (wfs_datafile_is_unsure(&f->store->datafiles, staging->staging->id))
		return -EIO;
	return wfs_reserve_is_safe(f->store) ? 0 : -ENOSPC;
}

static int seal_staging(struct wfs_file *f, struct wfs_content *staging)
{
	struct wfs_plan plan;
	uint64_t size;
	int ret = wfs_seal_check(f, staging, &size);

	if (ret)
		return ret;
	if (size == 0)
		return commit(f, staging, NULL, WFS_FATE_DB, NULL);
	ret = wfs_plan_split(&plan, f, staging, size);
	if (ret == 0)
		ret = seal_plan(f, &plan);
	wfs_plan_release(&plan);
	return ret;
}

int wfs_seal_begin(struct wfs_file *f, struct wfs_content **ret)
{
	int begun = 0;

	pthread_mutex_lock(&f->lock);
	if (f->content->staging) {
		begun = f->sealing || f->writers > 0 || f->changing ? -EBUSY : 1;
		if (begun > 0) {
			f->sealing = true;
			atomic_store(&f->stop_seal, false);
			*ret = wfs_content_ref(f->content);
		}
	}
	pthread_mutex_unlock(&f->lock);
	return begun;
}

void wfs_seal_end(struct wfs_file *f, struct wfs_content *staging)
{
	pthread_mutex_lock(&f->lock);
	f->sealing = false;
	pthread_mutex_unlock(&f->lock);
	wfs_content_unref(staging);
}

static int seal_file(struct wfs_file *f)
{
	struct wfs_content *staging;
	int ret = wfs_seal_begin(f, &staging);

	if (ret <= 0)
		return ret;
	ret = seal_staging(f, staging);
	wfs_seal_end(f, staging);
	if (ret == 0)
		atomic_store(&f->store->collect_wanted, true);
	return ret == -ENOENT ? 0 : ret; /* unlinked and dropped meanwhile */
}

/* Has a sync of it failed? It is reported, and stays as it is. */
static bool is_unsure(struct wfs_file *f)
{
	struct wfs_content *c = wfs_file_content(f);
	bool unsure = c->staging && wfs_datafile_is_unsure(c->table, c->staging->id);

	if (unsure)
		wfs_store_report_unsure(f->store, c->staging->id);
	wfs_content_unref(c);
	return unsure;
}

int wfs_seal(struct wfs_store *s, uint64_t ino, struct wfs_err *err)
{
	struct wfs_file *f;
	int ret = wfs_file_get(s, ino, &f);

	if (ret == -ENOENT)
		return 0;
	if (ret)
		return wfs_err_errno(err, ret, "inode %llu cannot be sealed",
			(unsigned long long)ino);
	ret = seal_file(f);
	if (ret && is_unsure(f))
		ret = wfs_err_set(err, -EIO, WFS_REASON_SYNC_FAILED, WFS_NO_OFFSET,
			"inode %llu is not sealed: the disk failed to write it", (unsigned long long)ino);
	wfs_file_unref(f);
	if (ret && ret != -EBUSY)
		wfs_err_errno(err, ret, "inode %llu cannot be sealed and stays dirty",
			(unsigned long long)ino);
	return ret;
}

int wfs_seal_list(struct wfs_store *s, uint64_t **ret, size_t *ret_n)
{
	int err = wfs_db_begin_read(&s->db);

	return err ? err : wfs_db_end(&s->db, wfs_db_list(&s->db, WFS_Q_INODE_DIRTY, ret, ret_n, ""));
}

int wfs_seal_each(struct wfs_store *s,
	int (*fn)(struct wfs_store *s, const struct wfs_attr *a, void *ctx), void *ctx)
{
	WFS_AUTO_FREE uint64_t *inos = NULL;
	size_t n = 0;
	int ret = wfs_seal_list(s, &inos, &n);

	for (size_t i = 0; i < n && ret == 0; i++) {
		struct wfs_attr a;

		ret = wfs_name_getattr(s, inos[i], &a);
		if (ret == 0 && a.data_file)
			ret = fn(s, &a, ctx);
		else if (ret == -ENOENT)
			ret = 0;
	}
	return ret;
}
