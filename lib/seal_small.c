/* lib/seal.h: small files, many in one transaction. */
#include <errno.h>
#include <string.h>

#include "lib/crash.h"
#include "lib/seal.h"
#include "lib/seal_priv.h"

/* One file on its way. */
struct job {
	uint64_t ino;
	struct wfs_file *file;
	struct wfs_content *staging; /* NULL: no seal has begun */
	struct wfs_plan plan;        /* of a file with bytes */
	bool has_plan;
	bool ready;                  /* to be recorded */
	uint64_t *ids;
	struct wfs_content *sealed;  /* from the transaction until it is the file's */
	bool locked;                 /* we have the file's lock */
	bool done;
};

/* ---- before the transaction: bytes are read, no lock is held ---- */

static int make_plan(struct job *j, uint64_t size)
{
	int ret = wfs_plan_split(&j->plan, j->file, j->staging, size);

	j->has_plan = true;
	if (ret == 0)
		ret = wfs_plan_hash(&j->plan);
	if (ret == 0)
		ret = wfs_plan_match(&j->plan);
	if (ret)
		return ret;
	j->ids = reallocarray(NULL, j->plan.n, sizeof(*j->ids));
	return j->ids ? 0 : -ENOMEM;
}

/* 1: to be recorded; 0: done; -errno: not for us. */
static int prepare(struct wfs_store *s, struct job *j)
{
	uint64_t size;
	int ret = wfs_file_get(s, j->ino, &j->file);

	if (ret)
		return ret == -ENOENT ? 0 : ret;
	ret = wfs_seal_begin(j->file, &j->staging);
	if (ret <= 0)
		return ret;
	ret = wfs_seal_check(j->file, j->staging, &size);
	if (ret == 0 && size > WFS_SMALL_FILE)
		ret = -EFBIG;
	if (ret == 0 && size > 0)
		ret = make_plan(j, size);
	return ret ? ret : 1;
}

static void release(struct job *j)
{
	if (j->has_plan)
		wfs_plan_release(&j->plan);
	if (j->staging)
		wfs_seal_end(j->file, j->staging);
	if (j->file)
		wfs_file_unref(j->file);
	free(j->ids);
}

/* ---- the transaction ---- */

/*
 * Their files' locks are held across it, as that of one is when it is sealed alone.
 * They are only tried: nobody waits for one of them while he has another.
 */
static bool lock(struct job *j)
{
	if (!j->ready || j->done || pthread_mutex_trylock(&j->file->lock) != 0)
		return false;
	j->locked = wfs_seal_may_commit(j->file, j->staging);
	if (!j->locked)
		pthread_mutex_unlock(&j->file->lock);
	return j->locked;
}

static int record(struct wfs_store *s, struct job *j)
{
	int ret = wfs_db_begin_part(&s->db);

	if (ret)
		return ret;
	ret = j->has_plan ? wfs_seal_record(&j->plan, WFS_FATE_DB, j->ids, &j->sealed)
			  : wfs_seal_record_empty(j->file, j->staging, &j->sealed);
	ret = wfs_db_end_part(&s->db, ret);
	if (ret) {
		wfs_content_unref(j->sealed);
		j->sealed = NULL;
	}
	return ret;
}

/* How many of them were tried. *ret_err: of the commit. */
static size_t record_some(struct wfs_store *s, struct job *jobs, size_t n, int *ret_err)
{
	size_t i = 0;

	*ret_err = wfs_db_begin(&s->db);
	if (*ret_err)
		return n;
	do {
		if (jobs[i].locked)
			record(s, &jobs[i]);
	} while (++i < n && !wfs_db_is_wanted(&s->db));
	wfs_crash_at("small-before-commit");
	*ret_err = wfs_db_end(&s->db, 0);
	wfs_crash_at("small-after-commit");
	return i;
}

/* What was committed is the file's content from here on. */
static void settle(struct job *j, bool committed)
{
	if (!j->locked)
		return;
	if (j->sealed && committed) {
		j->file->content = j->sealed;
		j->done = true;
	}
	pthread_mutex_unlock(&j->file->lock);
	j->locked = false;
	if (j->done)
		wfs_content_unref(j->staging); /* the file's own reference */
	else
		wfs_content_unref(j->sealed);
	j->sealed = NULL;
}

/* As many of them as there is time for. How many that were. */
static size_t commit_some(struct wfs_store *s, struct job *jobs, size_t n)
{
	size_t locked = 0, tried;
	int err;

	for (size_t i = 0; i < n; i++)
		locked += lock(&jobs[i]);
	if (locked == 0)
		return n;
	tried = record_some(s, jobs, n, &err);
	for (size_t i = 0; i < n; i++)
		settle(&jobs[i], err == 0);
	return tried;
}

/* ---- the whole ---- */

static void seal_jobs(struct wfs_store *s, struct job *jobs, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		int ret = prepare(s, &jobs[i]);

		jobs[i].done = ret == 0;
		jobs[i].ready = ret > 0;
	}
	for (size_t i = 0; i < n;)
		i += commit_some(s, jobs + i, n - i);
	for (size_t i = 0; i < n; i++) {
		if (!jobs[i].done || !jobs[i].has_plan)
			continue;
		wfs_seal_log(&jobs[i].plan, WFS_FATE_DB);
		if (wfs_plan_heals(&jobs[i].plan))
			wfs_seal_healed(s);
	}
}

void wfs_seal_small(struct wfs_store *s, uint64_t *inos, size_t *n)
{
	WFS_AUTO_FREE struct job *jobs = calloc(WFS_SEAL_AT_ONCE, sizeof(*jobs));
	size_t left = 0;

	if (!jobs)
		return;
	for (size_t i = 0; i < *n; i++)
		jobs[i].ino = inos[i];
	seal_jobs(s, jobs, *n);
	for (size_t i = 0; i < *n; i++) {
		if (!jobs[i].done)
			inos[left++] = jobs[i].ino;
		release(&jobs[i]);
	}
	if (left < *n)
		atomic_store(&s->collect_wanted, true);
	*n = left;
}
