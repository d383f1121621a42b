/* Duplicates that keep their place in the file and share blocks: lib/seal_plan.h, docs/decisions/0011-whole-copies.md. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/manifest.h"
#include "lib/seal_plan.h"
#include "lib/share.h"

#define AT_ONCE (UINT64_C(16) << 20) /* bytes between two looks at whether a writer has come */

/* Of a file that stays whole at most this part may be stored twice: edges of blocks, what is small. */
#define TWICE_PART 128

/* The largest extent that btrfs makes. */
#define WFS_BTRFS_EXTENT (UINT64_C(128) << 20)

/* ---- can the disk do it? ---- */

/* Two files of one block, the same in both. */
static bool try_sharing(struct wfs_store *s)
{
	WFS_AUTO_FREE char *block = malloc(s->share_block);
	WFS_AUTO_CLOSE int a = wfs_datafiles_scratch(&s->datafiles);
	WFS_AUTO_CLOSE int b = wfs_datafiles_scratch(&s->datafiles);

	if (!block || a < 0 || b < 0)
		return false;
	memset(block, 'x', s->share_block);
	if (wfs_pwrite_some(a, block, s->share_block, 0) != (ssize_t)s->share_block ||
		wfs_pwrite_some(b, block, s->share_block, 0) != (ssize_t)s->share_block)
		return false;
	return wfs_share_equal(a, 0, b, 0, s->share_block) == 0;
}

bool wfs_store_shares_blocks(struct wfs_store *s)
{
	/* Two threads may both try: they find the same. */
	if (atomic_load(&s->shares_blocks) == 0)
		atomic_store(&s->shares_blocks, s->share_block && try_sharing(s) ? 1 : -1);
	return atomic_load(&s->shares_blocks) > 0;
}

/* ---- what there is to be shared ---- */

/* Duplicates one behind the other, whose bytes stand so in another place as well. */
struct run {
	uint64_t at;              /* in the file, and so in its staging file */
	uint64_t length;          /* bytes, > 0 */
	uint64_t data_file, from; /* where they are, too; 0: in the database */
	uint64_t skip, inner;     /* of these, in blocks that can be shared: lib/share.h */
};

struct runs {
	struct run *list;
	size_t n;
	uint64_t twice;  /* bytes of duplicates that no run can share */
	uint64_t shared; /* bytes that runs can */
};

/* Where the bytes of a duplicate are, too. */
static struct run run_of(const struct wfs_plan *p, const struct wfs_plan_piece *piece)
{
	struct run run = { .at = piece->offset, .length = piece->length };

	if (piece->object) {
		run.data_file = piece->data_file;
		run.from = piece->place;
	} else {
		run.data_file = p->content->staging->id;
		run.from = p->pieces[piece->same_as].offset;
	}
	return run;
}

/* True if `next` is right behind `run`, in both places. */
static bool goes_on(const struct run *run, const struct run *next)
{
	return run->data_file && run->data_file == next->data_file &&
	       run->at + run->length == next->at && run->from + run->length == next->from;
}

static int find_runs(const struct wfs_plan *p, struct runs *ret)
{
	struct wfs_store *s = p->file->store;
	uint64_t block = wfs_store_shares_blocks(s) ? s->share_block : 0;

	*ret = (struct runs){ .list = reallocarray(NULL, p->n, sizeof(*ret->list)) };
	if (!ret->list)
		return -ENOMEM;
	for (size_t i = 0; i < p->n; i++) {
		struct run run;

		if (wfs_plan_is_new(&p->pieces[i]))
			continue;
		run = run_of(p, &p->pieces[i]);
		if (ret->n && goes_on(&ret->list[ret->n - 1], &run))
			ret->list[ret->n - 1].length += run.length;
		else
			ret->list[ret->n++] = run;
	}
	for (size_t i = 0; i < ret->n; i++) {
		struct run *run = &ret->list[i];

		if (run->data_file)
			run->inner = wfs_share_inner(block, run->from, run->at, run->length,
				&run->skip);
		ret->shared += run->inner;
		ret->twice += run->length - run->inner;
	}
	return 0;
}

/* Nothing in it is new: is there a file with just this content? Then that is shared, whatever it is kept in. */
static int is_known(const struct wfs_plan *p)
{
	struct wfs_db *db = &p->file->store->db;
	WFS_AUTO_FREE uint64_t *ids = reallocarray(NULL, p->n, sizeof(*ids));
	int ret;

	if (!ids)
		return -ENOMEM;
	for (size_t i = 0; i < p->n; i++) {
		ids[i] = p->pieces[i].object;
		if (!ids[i])
			return 0;
	}
	ret = wfs_db_begin_read(db);
	return ret ? ret : wfs_db_end(db, wfs_manifest_find(db, ids, p->n));
}

/* ---- sharing it ---- */

/* Let [at, at + length) of the staging file have the blocks of what is at `from` in `from_fd`. */
static int share_range(struct wfs_plan *p, int from_fd, uint64_t from, uint64_t at, uint64_t length)
{
	struct wfs_datafiles *table = p->content->table;
	int to_fd = wfs_datafile_use(table, p->content->staging);
	int ret = WFS_MIN(to_fd, 0);

	for (uint64_t done = 0; done < length && ret == 0; done += WFS_MIN(AT_ONCE, length - done))
		ret = wfs_plan_must_stop(p) ? -EBUSY
					    : wfs_share_equal(from_fd, from + done, to_fd, at + done,
						      WFS_MIN(AT_ONCE, length - done));
	if (to_fd >= 0)
		wfs_datafile_unuse(table, p->content->staging);
	return ret;
}

static int share_run(struct wfs_plan *p, const struct run *run)
{
	struct wfs_datafiles *table = p->content->table;
	struct wfs_datafile *df = wfs_datafile_get(table, run->data_file);
	int fd, ret;

	if (!df)
		return -ENOMEM;
	fd = wfs_datafile_use(table, df);
	ret = fd < 0 ? fd : share_range(p, fd, run->from + run->skip, run->at + run->skip, run->inner);
	if (fd >= 0)
		wfs_datafile_unuse(table, df);
	wfs_datafile_unref(table, df);
	return ret;
}

/* Those that are equal to something in the same file, or those that are not. */
static int share_runs(struct wfs_plan *p, const struct runs *runs, bool own)
{
	int ret = 0;

	for (size_t i = 0; i < runs->n && ret == 0; i++) {
		const struct run *run = &runs->list[i];

		if (run->inner && own == (run->data_file == p->content->staging->id))
			ret = share_run(p, run);
	}
	return ret;
}

/* ---- extents that are freed as a whole only (btrfs) ---- */

/* Copy [at, at + length) of the staging file to `fd` at the same place, and let the staging file have that. */
static int move_range(struct wfs_plan *p, int fd, uint64_t at, uint64_t length)
{
	int ret = 0;

	for (uint64_t done = 0; done < length && ret == 0; done += WFS_PLAN_BUFFER) {
		size_t part = WFS_MIN(WFS_PLAN_BUFFER, length - done);
		ssize_t n = wfs_plan_must_stop(p) ? -EBUSY
						  : wfs_content_read(p->content, p->buf, part, at + done);

		if (n > 0)
			n = wfs_pwrite_some(fd, p->buf, (size_t)n, at + done);
		ret = n < 0 ? (int)n : (size_t)n < part ? -ENOSPC : 0;
	}
	return ret ? ret : share_range(p, fd, at, at, length);
}

/*
 * The staging file was written in extents that reach across what is shared now and
 * what is not; none is freed before all of it is unused. So what is near to what is
 * shared moves to extents of its own. Only bytes that the kernel found equal are ever
 * exchanged, so a writer that comes meanwhile loses nothing. The last range ends with
 * both files, and so may end within a block.
 */
static int leave_extents(struct wfs_plan *p, const struct runs *runs)
{
	WFS_AUTO_CLOSE int fd = wfs_datafiles_scratch(&p->file->store->datafiles);
	uint64_t end = 0;
	int ret = WFS_MIN(fd, 0);

	for (size_t i = 0; i <= runs->n && ret == 0; i++) {
		const struct run *run = i < runs->n ? &runs->list[i] : NULL;
		uint64_t begin = run ? run->at + run->skip : p->size;
		uint64_t gap = begin > end ? begin - end : 0;
		uint64_t head = end > 0 ? WFS_MIN(gap, WFS_BTRFS_EXTENT) : 0;
		uint64_t tail = run ? WFS_MIN(gap - head, WFS_BTRFS_EXTENT) : 0;

		if (run && !run->inner)
			continue;
		if (head)
			ret = move_range(p, fd, end, head);
		if (!ret && tail)
			ret = move_range(p, fd, begin - tail, tail);
		if (run)
			end = run->at + run->skip + run->inner;
	}
	return ret;
}

/* ---- the whole ---- */

static int share(struct wfs_plan *p, const struct runs *runs)
{
	struct wfs_store *s = p->file->store;
	struct stat st;
	int ret = is_known(p);

	if (ret)
		return WFS_MIN(ret, 0);
	ret = share_runs(p, runs, false);
	if (ret == 0 && s->frees_extents_whole)
		ret = leave_extents(p, runs);
	/* What is equal within the file is so to blocks that stay. */
	if (ret == 0)
		ret = share_runs(p, runs, true);
	if (ret == 0)
		ret = wfs_datafile_stat(&s->datafiles, p->content->staging->id, &st);
	/* An object that is gone or has moved since it was found is no error: what is punched needs none. */
	if (ret)
		return ret == -EBUSY ? ret : 0;
	/* Of holes there is nothing to be shared. */
	p->shared = WFS_MIN(runs->shared, (uint64_t)st.st_blocks * 512);
	return 1;
}

int wfs_plan_share(struct wfs_plan *p)
{
	struct runs runs;
	int ret = find_runs(p, &runs);

	if (ret == 0 && runs.twice <= p->size / TWICE_PART)
		ret = share(p, &runs);
	free(runs.list);
	return ret;
}
