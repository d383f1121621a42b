#include "lib/verify.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "lib/array.h"
#include "lib/object.h"
#include "lib/store_priv.h"
#include "lib/verify_read.h"
#include "lib/whole.h"

#define BATCH 256                     /* entries that one thread takes at once, at most */
#define BATCH_BYTES (UINT64_C(64) << 20) /* and about so many bytes */
#define TICK_NS 100000000

enum phase {
	PHASE_FILES,
	PHASE_ROWS,
	PHASE_COPIES,
	PHASE_END,
};

/* What is to be read. */
struct entry {
	uint64_t object;
	struct wfs_digest digest;
	uint64_t length;
	uint64_t file, offset; /* file 0: in the database */
	uint64_t copy_of;      /* as in struct wfs_verify_bad */
};

struct entries {
	struct entry *list;
	size_t n, room;
};

struct run {
	struct wfs_store *s;
	const struct wfs_verify_options *options;
	uint64_t last; /* no object with a greater id */
	struct entries asked; /* with options->inos: all that is to be read, in order */

	pthread_mutex_t lock;
	pthread_cond_t idle; /* a thread has ended */
	/* under lock */
	enum phase phase;
	uint64_t at_file, at_offset, at_row, at_copy; /* how far each phase has come */
	size_t at_asked;
	unsigned threads;
	int failed;          /* the first -errno */
	int64_t due_ns;      /* when the next byte may be read */
	uint64_t done, total; /* bytes */
	struct wfs_verify_bad *bad;
	size_t n_bad, bad_room;
	struct wfs_verify_summary sum;
};

static int add_entry(struct entries *e, const struct entry *entry)
{
	if (WFS_ARRAY_ROOM(e->list, e->n, e->room))
		return -ENOMEM;
	e->list[e->n++] = *entry;
	return 0;
}

/* Columns id, digest, length. A digest of another size is nobody's: the bytes cannot be right. */
static struct entry entry_of(sqlite3_stmt *row, int id, int digest, int length)
{
	struct entry e = { .object = (uint64_t)sqlite3_column_int64(row, id),
		.length = (uint64_t)sqlite3_column_int64(row, length) };

	if ((size_t)sqlite3_column_bytes(row, digest) == sizeof(e.digest.bytes))
		memcpy(e.digest.bytes, sqlite3_column_blob(row, digest), sizeof(e.digest.bytes));
	return e;
}

/* ---- what was found ---- */

/* Under lock. */
static int add_bad(struct run *run, const struct entry *e, enum wfs_damage_reason reason)
{
	if (WFS_ARRAY_ROOM(run->bad, run->n_bad, run->bad_room))
		return -ENOMEM;
	run->bad[run->n_bad++] = (struct wfs_verify_bad){ .object = e->object,
		.digest = e->digest, .length = e->length, .data_file = e->file,
		.offset = e->offset, .reason = reason, .copy_of = e->copy_of };
	run->sum.bad += reason != WFS_DAMAGE_NONE;
	return 0;
}

/* Within a transaction: 1 if the object is still there where it was read. */
static int is_still_there(struct wfs_db *db, const struct entry *e)
{
	sqlite3_stmt *row;
	bool same;
	int found = e->copy_of ? wfs_db_first(db, WFS_Q_MANIFEST_GET, &row, "i", e->copy_of)
			       : wfs_db_first(db, WFS_Q_DAMAGE_PLACE, &row, "i", e->object);

	if (found <= 0)
		return found;
	if (e->copy_of)
		same = sqlite3_column_int64(row, 0) > 0 &&
		       (uint64_t)sqlite3_column_int64(row, 3) == e->file;
	else
		same = (uint64_t)sqlite3_column_int64(row, 0) == e->file &&
		       (!e->file || (uint64_t)sqlite3_column_int64(row, 1) == e->offset);
	wfs_db_done(row);
	return same;
}

/* 1 if it is to be said. */
static int is_news(struct wfs_store *s, const struct entry *e, enum wfs_damage_reason reason)
{
	uint64_t mark;
	int ret = wfs_db_begin_read(&s->db);

	if (ret)
		return ret;
	ret = is_still_there(&s->db, e);
	if (ret > 0 && reason == WFS_DAMAGE_NONE)
		ret = wfs_db_number(&s->db, WFS_Q_DAMAGE_OF, &mark, "i", e->object);
	return wfs_db_end(&s->db, ret);
}

/* What became of one entry. */
static int conclude(struct run *run, const struct entry *e, enum wfs_damage_reason reason)
{
	int ret = 0;

	if (reason != WFS_DAMAGE_NONE || (wfs_damage_is_any(run->s) && !e->copy_of))
		ret = is_news(run->s, e, reason);
	pthread_mutex_lock(&run->lock);
	if (ret > 0)
		ret = add_bad(run, e, reason);
	run->sum.objects += !e->copy_of;
	run->sum.bytes += e->length;
	pthread_mutex_unlock(&run->lock);
	return ret;
}

/* ---- how fast ---- */

static bool must_stop(struct run *run)
{
	bool failed;

	if (run->options->stop && atomic_load(run->options->stop))
		return true;
	pthread_mutex_lock(&run->lock);
	failed = run->failed != 0;
	pthread_mutex_unlock(&run->lock);
	return failed;
}

/* Wait until the bytes may be read. -EINTR: no more. */
static int pace(void *ctx, uint64_t bytes)
{
	struct run *run = ctx;
	int64_t due, now = wfs_monotonic_ns();

	pthread_mutex_lock(&run->lock);
	run->done += bytes;
	due = WFS_MAX(run->due_ns, now);
	if (run->options->rate)
		run->due_ns = due + (int64_t)((double)bytes / (double)run->options->rate * 1e9);
	pthread_mutex_unlock(&run->lock);
	while (!must_stop(run)) {
		struct timespec wait;

		now = wfs_monotonic_ns();
		if (!run->options->rate || now >= due)
			return 0;
		wait = wfs_timespec(WFS_MIN(due - now, TICK_NS));
		nanosleep(&wait, NULL);
	}
	return -EINTR;
}

/* ---- reading ---- */

static int read_entry(struct run *run, struct wfs_verify_reader *r, const struct entry *e)
{
	struct wfs_digest have;
	int found = 0;

	/* Twice, before it is called damage: what is in the window may be older than the object. */
	for (unsigned tries = 0; tries < 2; tries++) {
		found = wfs_verify_digest(r, e->file, e->offset, e->length,
			run->s->options.digest_bits, &have);
		if (found < 0)
			return found;
		if (found == WFS_DAMAGE_NONE && !wfs_digest_equal(&have, &e->digest))
			found = WFS_DAMAGE_CHANGED;
		if (found == WFS_DAMAGE_NONE)
			break;
		wfs_verify_reader_forget(r);
	}
	return conclude(run, e, (enum wfs_damage_reason)found);
}

/* A row with columns id, digest, length, bytes. */
static enum wfs_damage_reason judge_row(struct run *run, sqlite3_stmt *row, struct entry *ret)
{
	struct wfs_digest have;

	*ret = entry_of(row, 0, 1, 2);
	if (sqlite3_column_type(row, 3) == SQLITE_NULL)
		return WFS_DAMAGE_MISSING;
	if ((uint64_t)sqlite3_column_bytes(row, 3) != ret->length)
		return WFS_DAMAGE_CHANGED;
	have = wfs_digest_of(sqlite3_column_blob(row, 3), ret->length, run->s->options.digest_bits);
	return wfs_digest_equal(&have, &ret->digest) ? WFS_DAMAGE_NONE : WFS_DAMAGE_CHANGED;
}

/* ---- what comes next; under lock ---- */

static int next_files(struct run *run, struct entries *batch)
{
	struct wfs_db *db = &run->s->db;
	uint64_t bytes = 0;
	sqlite3_stmt *row;
	int more = wfs_db_begin_read(db);

	if (more)
		return more;
	for (more = wfs_db_first(db, WFS_Q_VERIFY_FILES, &row, "iii", run->at_file, run->at_offset,
		     run->last);
		more > 0; more = wfs_db_next(db, row)) {
		struct entry e = entry_of(row, 0, 1, 2);
		int err;

		e.file = run->at_file = (uint64_t)sqlite3_column_int64(row, 3);
		e.offset = run->at_offset = (uint64_t)sqlite3_column_int64(row, 4);
		err = add_entry(batch, &e);
		bytes += e.length;
		if (err || bytes >= BATCH_BYTES) {
			wfs_db_done(row);
			more = err;
			break;
		}
	}
	return wfs_db_end(db, more);
}

/* The bytes of these are read with the rows; what is wrong among them is looked at again later. */
static int next_rows(struct run *run, struct entries *batch, bool *ret_more)
{
	struct wfs_db *db = &run->s->db;
	sqlite3_stmt *row;
	int more = wfs_db_begin_read(db);

	*ret_more = false;
	if (more)
		return more;
	for (more = wfs_db_first(db, WFS_Q_VERIFY_ROWS, &row, "ii", run->at_row, run->last); more > 0;
		more = wfs_db_next(db, row)) {
		struct entry e;
		enum wfs_damage_reason reason = judge_row(run, row, &e);
		int err = 0;

		run->at_row = e.object;
		run->done += e.length;
		*ret_more = true;
		if (reason != WFS_DAMAGE_NONE || wfs_damage_is_any(run->s)) {
			err = add_entry(batch, &e);
		} else {
			run->sum.objects++;
			run->sum.bytes += e.length;
		}
		if (err) {
			wfs_db_done(row);
			more = err;
			break;
		}
	}
	return wfs_db_end(db, more);
}

/* What a whole copy has of objects that do not live there. */
static int add_copy(struct run *run, uint64_t manifest, uint64_t file, struct entries *batch)
{
	struct wfs_db *db = &run->s->db;
	uint64_t at = 0;
	sqlite3_stmt *row;
	int more;

	for (more = wfs_db_first(db, WFS_Q_MANIFEST_LOAD, &row, "i", manifest); more > 0;
		more = wfs_db_next(db, row)) {
		struct entry e = entry_of(row, 0, 4, 1);
		bool is_home = (uint64_t)sqlite3_column_int64(row, 2) == file &&
			       (uint64_t)sqlite3_column_int64(row, 3) == at;
		int err = 0;

		e.file = file;
		e.offset = at;
		e.copy_of = manifest;
		at += e.length;
		if (!is_home)
			err = add_entry(batch, &e);
		if (err) {
			wfs_db_done(row);
			return err;
		}
	}
	return more;
}

static int next_copy(struct run *run, struct entries *batch, bool *ret_more)
{
	struct wfs_db *db = &run->s->db;
	uint64_t manifest;
	int found = wfs_db_begin_read(db);

	if (found)
		return found;
	found = wfs_whole_next(db, &run->at_copy, &manifest);
	*ret_more = found > 0;
	if (found > 0) {
		run->sum.copies++;
		found = add_copy(run, manifest, run->at_copy, batch);
	}
	return wfs_db_end(db, found);
}

static int next_asked(struct run *run, struct entries *batch)
{
	uint64_t bytes = 0;
	int ret = 0;

	while (ret == 0 && run->at_asked < run->asked.n && bytes < BATCH_BYTES && batch->n < BATCH) {
		const struct entry *e = &run->asked.list[run->at_asked++];

		bytes += e->length;
		ret = add_entry(batch, e);
	}
	return ret;
}

/* 1 with the next entries, of which there may be none; 0 at the end. */
static int next_batch(struct run *run, struct entries *batch)
{
	bool more = false;
	int ret = 0;

	batch->n = 0;
	if (run->options->inos) {
		ret = next_asked(run, batch);
		return ret ? ret : batch->n > 0;
	}
	if (run->phase == PHASE_FILES) {
		ret = next_files(run, batch);
		more = batch->n > 0;
	} else if (run->phase == PHASE_ROWS) {
		ret = next_rows(run, batch, &more);
	} else if (run->phase == PHASE_COPIES) {
		ret = next_copy(run, batch, &more);
	}
	if (ret)
		return ret;
	if (!more && run->phase < PHASE_END)
		run->phase++;
	return run->phase < PHASE_END;
}

/* ---- the threads ---- */

/* What is in the database, in its newest state. */
static int read_row(struct run *run, const struct entry *e)
{
	enum wfs_damage_reason reason = WFS_DAMAGE_NONE;
	struct entry now = *e;
	sqlite3_stmt *row;
	int found = wfs_db_begin_read(&run->s->db);

	if (found)
		return found;
	found = wfs_db_first(&run->s->db, WFS_Q_VERIFY_ROW, &row, "i", e->object);
	if (found > 0) {
		reason = judge_row(run, row, &now);
		wfs_db_done(row);
	}
	found = wfs_db_end(&run->s->db, found);
	return found > 0 ? conclude(run, &now, reason) : found;
}

static int read_batch(struct run *run, struct wfs_verify_reader *r, const struct entries *batch)
{
	int ret = 0;

	for (size_t i = 0; i < batch->n && ret == 0; i++) {
		if (must_stop(run))
			return -EINTR;
		if (batch->list[i].file)
			ret = read_entry(run, r, &batch->list[i]);
		else
			ret = read_row(run, &batch->list[i]);
	}
	return ret;
}

static void *thread_main(void *ctx)
{
	struct run *run = ctx;
	struct entries batch = { .list = NULL };
	struct wfs_verify_reader r;
	int ret = wfs_verify_reader_init(&r, &run->s->datafiles);

	r.before = pace;
	r.ctx = run;
	while (ret >= 0) {
		pthread_mutex_lock(&run->lock);
		ret = next_batch(run, &batch);
		pthread_mutex_unlock(&run->lock);
		if (ret <= 0)
			break;
		ret = read_batch(run, &r, &batch);
	}
	wfs_verify_reader_release(&r);
	free(batch.list);
	pthread_mutex_lock(&run->lock);
	if (ret < 0 && !run->failed)
		run->failed = ret;
	run->threads--;
	pthread_cond_signal(&run->idle);
	pthread_mutex_unlock(&run->lock);
	return NULL;
}

static void wait_for_threads(struct run *run)
{
	struct timespec until;

	pthread_mutex_lock(&run->lock);
	while (run->threads > 0) {
		until = wfs_timespec(wfs_now_ns() + TICK_NS);
		pthread_cond_timedwait(&run->idle, &run->lock, &until);
		if (run->options->tick) {
			uint64_t done = run->done, total = run->total;

			pthread_mutex_unlock(&run->lock);
			run->options->tick(run->options->tick_ctx, WFS_MIN(done, total), total);
			pthread_mutex_lock(&run->lock);
		}
	}
	pthread_mutex_unlock(&run->lock);
}

#define MAX_THREADS 64

static int run_threads(struct run *run)
{
	unsigned want = run->options->threads ? run->options->threads : WFS_VERIFY_THREADS;
	pthread_t threads[MAX_THREADS];
	unsigned n = 0;
	int ret = 0;

	want = WFS_MIN(want, MAX_THREADS);
	for (; n < want && ret == 0; n++) {
		pthread_mutex_lock(&run->lock);
		run->threads++;
		pthread_mutex_unlock(&run->lock);
		ret = -pthread_create(&threads[n], NULL, thread_main, run);
		if (ret == 0)
			continue;
		pthread_mutex_lock(&run->lock);
		run->threads--;
		pthread_mutex_unlock(&run->lock);
		break;
	}
	wait_for_threads(run);
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	/* One of them is enough. */
	return n > 0 ? run->failed : ret;
}

/* ---- what was asked for ---- */

static int by_place(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	if (x->file != y->file)
		return x->file < y->file ? -1 : 1;
	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	if (x->object != y->object)
		return x->object < y->object ? -1 : 1;
	return x->copy_of < y->copy_of ? -1 : x->copy_of > y->copy_of;
}

static int add_objects(struct run *run, uint64_t manifest)
{
	struct wfs_db *db = &run->s->db;
	sqlite3_stmt *row;
	int more;

	for (more = wfs_db_first(db, WFS_Q_MANIFEST_LOAD, &row, "i", manifest); more > 0;
		more = wfs_db_next(db, row)) {
		struct entry e = entry_of(row, 0, 4, 1);
		int err;

		e.file = (uint64_t)sqlite3_column_int64(row, 2);
		e.offset = (uint64_t)sqlite3_column_int64(row, 3);
		err = add_entry(&run->asked, &e);
		if (err) {
			wfs_db_done(row);
			return err;
		}
	}
	return more;
}

static int add_inode(struct run *run, uint64_t ino)
{
	struct wfs_db *db = &run->s->db;
	uint64_t whole = 0;
	sqlite3_stmt *row;
	struct wfs_attr a;
	int found = wfs_inode_get(run->s, ino, &a);

	if (found <= 0)
		return found;
	run->sum.dirty += a.data_file != 0;
	if (!a.manifest)
		return 0;
	found = add_objects(run, a.manifest);
	if (found == 0)
		found = wfs_db_first(db, WFS_Q_MANIFEST_GET, &row, "i", a.manifest);
	if (found > 0) {
		whole = (uint64_t)sqlite3_column_int64(row, 3);
		wfs_db_done(row);
	}
	return found > 0 && whole ? add_copy(run, a.manifest, whole, &run->asked) : WFS_MIN(found, 0);
}

/* Each object and each copy once, in the order of the disk. */
static void put_in_order(struct run *run)
{
	struct entries *e = &run->asked;
	size_t n = 0;

	if (e->n)
		qsort(e->list, e->n, sizeof(*e->list), by_place);
	for (size_t i = 0; i < e->n; i++) {
		if (n && by_place(&e->list[n - 1], &e->list[i]) == 0)
			continue;
		run->sum.copies += e->list[i].copy_of && (!n || e->list[n - 1].copy_of != e->list[i].copy_of);
		run->total += e->list[i].length;
		e->list[n++] = e->list[i];
	}
	e->n = n;
}

static int begin_asked(struct run *run)
{
	int ret = 0;

	for (size_t i = 0; i < run->options->n_inos && ret == 0; i++) {
		ret = wfs_db_begin_read(&run->s->db);
		if (ret == 0)
			ret = wfs_db_end(&run->s->db, add_inode(run, run->options->inos[i]));
	}
	if (ret == 0)
		put_in_order(run);
	return ret;
}

static int begin_all(struct run *run)
{
	struct wfs_store_stats stats;
	struct wfs_db *db = &run->s->db;
	uint64_t copies = 0;
	int ret = wfs_db_begin_read(db);

	if (ret)
		return ret;
	ret = wfs_db_number(db, WFS_Q_VERIFY_LAST, &run->last, "");
	if (ret >= 0)
		ret = wfs_db_number(db, WFS_Q_VERIFY_TOTAL, &run->total, "");
	if (ret >= 0)
		ret = wfs_db_number(db, WFS_Q_VERIFY_COPIES, &copies, "");
	run->total += copies;
	ret = wfs_db_end(db, WFS_MIN(ret, 0));
	if (ret == 0)
		ret = wfs_store_stats(run->s, &stats, NULL);
	if (ret == 0)
		run->sum.dirty = stats.dirty;
	return ret;
}

/* ---- copies that are right ---- */

static struct wfs_verify_bad *find_bad(struct run *run, uint64_t object, uint64_t copy_of)
{
	for (size_t i = 0; i < run->n_bad; i++)
		if (run->bad[i].object == object && run->bad[i].copy_of == copy_of)
			return &run->bad[i];
	return NULL;
}

/* Within a transaction: what this whole copy has of what is bad, and was found right there. */
static int use_copy(struct run *run, uint64_t manifest, uint64_t file)
{
	struct entries copies = { .list = NULL };
	int ret = add_copy(run, manifest, file, &copies);

	for (size_t i = 0; i < copies.n && ret == 0; i++) {
		const struct entry *e = &copies.list[i];
		struct wfs_verify_bad *b = find_bad(run, e->object, 0);

		if (!b || b->reason == WFS_DAMAGE_NONE || find_bad(run, e->object, manifest))
			continue;
		b->good_file = e->file;
		b->good_at = e->offset;
	}
	free(copies.list);
	return ret;
}

/* All whole copies were read: of those that were asked for, that is. */
static bool was_read(const struct run *run, uint64_t manifest)
{
	if (!run->options->inos)
		return true;
	for (size_t i = 0; i < run->asked.n; i++)
		if (run->asked.list[i].copy_of == manifest)
			return true;
	return false;
}

static int find_copies(struct run *run)
{
	uint64_t after = 0, manifest;
	int more = run->n_bad ? wfs_db_begin_read(&run->s->db) : -EAGAIN;

	if (more)
		return more == -EAGAIN ? 0 : more;
	while ((more = wfs_whole_next(&run->s->db, &after, &manifest)) > 0) {
		if (was_read(run, manifest))
			more = use_copy(run, manifest, after);
		if (more < 0)
			break;
	}
	return wfs_db_end(&run->s->db, WFS_MIN(more, 0));
}

/* ---- the whole ---- */

static int by_object(const void *a, const void *b)
{
	const struct wfs_verify_bad *x = a, *y = b;

	if (x->object != y->object)
		return x->object < y->object ? -1 : 1;
	return x->copy_of < y->copy_of ? -1 : x->copy_of > y->copy_of;
}

int wfs_verify(struct wfs_store *s, const struct wfs_verify_options *options,
	struct wfs_verify_bad **ret, size_t *ret_n, struct wfs_verify_summary *summary,
	struct wfs_err *err)
{
	struct run run = { .s = s, .options = options };
	int e;

	pthread_mutex_init(&run.lock, NULL);
	pthread_cond_init(&run.idle, NULL);
	e = options->inos ? begin_asked(&run) : begin_all(&run);
	if (e == 0)
		e = run_threads(&run);
	if (e == 0)
		e = find_copies(&run);
	if (run.n_bad)
		qsort(run.bad, run.n_bad, sizeof(*run.bad), by_object);
	*ret = run.bad;
	*ret_n = run.n_bad;
	*summary = run.sum;
	free(run.asked.list);
	pthread_cond_destroy(&run.idle);
	pthread_mutex_destroy(&run.lock);
	return e && e != -EINTR ? wfs_err_errno(err, e, "verifying %s", s->path) : e;
}
