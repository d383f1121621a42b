#include "lib/repack.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/crash.h"
#include "lib/datafile_state.h"
#include "lib/file_priv.h"
#include "lib/quota.h"
#include "lib/reserve.h"
#include "lib/seal.h"
#include "lib/share.h"
#include "lib/whole.h"

#define STEP_BYTES (UINT64_C(32) << 20) /* copied in one step: tens of milliseconds, and their flush */

struct wfs_repack {
	struct wfs_file *file;    /* borrowed */
	struct wfs_content *from; /* sealed, composed */
	struct wfs_content *to;   /* staging: the new data file */
	size_t extent;            /* the one that is next; its first `at - extents[extent].at` bytes are done */
	uint64_t at;              /* bytes done */
	uint64_t copied;
	bool shares;              /* try to share blocks */
	bool is_done;
};

static uint64_t inner_of(const struct wfs_repack *r, const struct wfs_extent *e, uint64_t *ret_skip)
{
	if (!r->shares || !e->df || atomic_load(&e->df->has_bad))
		return 0;
	return wfs_share_inner(r->file->store->share_block, e->offset, e->at, e->length, ret_skip);
}

/* ---- begin ---- */

/* A reference to the content, if there is something to be made of it: 1, 0 or -errno. */
static int look(struct wfs_file *f, struct wfs_content **ret)
{
	struct wfs_content *c;
	bool is_written;

	if (f->store->db.read_only)
		return -EROFS;
	pthread_mutex_lock(&f->lock);
	c = wfs_content_ref(f->content);
	is_written = f->writers > 0;
	pthread_mutex_unlock(&f->lock);
	*ret = c;
	if (c->staging)
		return is_written ? -ETXTBSY : -EAGAIN;
	return c->n > 0 && c->size > WFS_SMALL_FILE && !wfs_content_whole(c);
}

/* Room for what has to be copied. */
static int take_room(struct wfs_repack *r)
{
	struct wfs_store *s = r->file->store;
	uint64_t bytes = r->from->size;

	for (size_t i = 0; i < r->from->n; i++)
		bytes -= inner_of(r, &r->from->extents[i], NULL);
	return wfs_reserve_is_safe(s) ? wfs_quota_take(s, bytes) : -ENOSPC;
}

static int make_target(struct wfs_repack *r)
{
	struct wfs_store *s = r->file->store;
	uint64_t id;
	int fd, ret = wfs_filling_create(s, &id);

	if (ret)
		return ret;
	r->to = wfs_content_new_staging(&s->datafiles, id);
	if (!r->to) {
		wfs_filling_abandon(s, id);
		return -ENOMEM;
	}
	fd = wfs_datafile_use_to_write(&s->datafiles, r->to->staging);
	if (fd < 0)
		return fd;
	ret = ftruncate(fd, (off_t)r->from->size) != 0 ? -errno : 0;
	wfs_datafile_unuse(&s->datafiles, r->to->staging);
	return ret;
}

int wfs_repack_begin(struct wfs_file *f, struct wfs_repack **ret)
{
	struct wfs_content *from = NULL;
	struct wfs_repack *r = NULL;
	int err = look(f, &from);

	if (err <= 0) {
		wfs_content_unref(from);
		return err;
	}
	r = calloc(1, sizeof(*r));
	if (!r) {
		wfs_content_unref(from);
		return -ENOMEM;
	}
	r->file = f;
	r->from = from;
	r->shares = wfs_store_shares_blocks(f->store);
	err = take_room(r);
	if (!err)
		err = make_target(r);
	if (err) {
		wfs_repack_end(r);
		return err;
	}
	*ret = r;
	return 1;
}

/* ---- copying ---- */

static int copy(struct wfs_repack *r, int fd, uint64_t at, uint64_t length)
{
	int ret = wfs_content_copy_data(r->from, at, length, fd);

	if (ret == 0)
		r->copied += length;
	return ret;
}

/* An extent whose blocks can be shared, but for its edges. -EOPNOTSUPP: they cannot. */
static int share_extent(struct wfs_repack *r, int fd, const struct wfs_extent *e)
{
	uint64_t skip = 0, inner = inner_of(r, e, &skip);
	struct wfs_datafiles *table = r->from->table;
	int ret, from_fd = wfs_datafile_use(table, e->df);

	if (from_fd < 0)
		return from_fd;
	ret = wfs_share_clone(from_fd, e->offset + skip, fd, e->at + skip, inner);
	wfs_datafile_unuse(table, e->df);
	if (ret == 0 && skip)
		ret = copy(r, fd, e->at, skip);
	if (ret == 0 && skip + inner < e->length)
		ret = copy(r, fd, e->at + skip + inner, e->length - skip - inner);
	return ret;
}

/* The next extent, or up to `most` bytes of it. */
static int copy_some(struct wfs_repack *r, int fd, uint64_t most)
{
	const struct wfs_extent *e = &r->from->extents[r->extent];
	uint64_t left = e->at + e->length - r->at;
	uint64_t part = WFS_MIN(left, most);
	int ret = -EOPNOTSUPP;

	if (r->at == e->at && inner_of(r, e, NULL)) {
		ret = share_extent(r, fd, e);
		if (ret == 0)
			part = left;
	}
	if (ret == -EOPNOTSUPP)
		ret = copy(r, fd, r->at, part);
	if (ret)
		return ret;
	r->at += part;
	r->extent += part == left;
	return 0;
}

static int copy_step(struct wfs_repack *r)
{
	struct wfs_datafiles *table = r->to->table;
	uint64_t end = r->copied + STEP_BYTES;
	int ret = 0, fd = wfs_datafile_use_to_write(table, r->to->staging);

	if (fd < 0)
		return fd;
	while (ret == 0 && r->at < r->from->size && r->copied < end)
		ret = copy_some(r, fd, end - r->copied);
	wfs_datafile_unuse(table, r->to->staging);
	/* Now, and not all of it before the transaction. */
	return ret ? ret : wfs_datafile_sync(table, r->to->staging);
}

/* ---- the transaction ---- */

/* True if the manifest is what it was, alive, and without a whole copy: 1, 0 or -errno. */
static int is_as_it_was(struct wfs_store *s, uint64_t ino, uint64_t manifest)
{
	struct wfs_attr a;
	sqlite3_stmt *row;
	bool is_same;
	int found = wfs_inode_get(s, ino, &a);

	if (found <= 0 || a.manifest != manifest)
		return WFS_MIN(found, 0);
	found = wfs_db_first(&s->db, WFS_Q_MANIFEST_GET, &row, "i", manifest);
	if (found <= 0)
		return found;
	is_same = sqlite3_column_int64(row, 0) > 0 && sqlite3_column_type(row, 3) == SQLITE_NULL;
	wfs_db_done(row);
	return is_same;
}

static int publish(struct wfs_repack *r, uint64_t shared, struct wfs_content **ret)
{
	struct wfs_store *s = r->file->store;
	uint64_t manifest = r->from->manifest, id = r->to->staging->id;
	int err = is_as_it_was(s, r->file->ino, manifest);

	if (err <= 0)
		return err ? err : -ETXTBSY;
	err = wfs_whole_set(&s->db, manifest, id, shared);
	if (!err)
		err = wfs_db_run(&s->db, WFS_Q_DATA_STATE, "ii", (uint64_t)WFS_DATA_PACK, id);
	if (!err)
		err = wfs_whole_settle(&s->db, manifest, s->share_block);
	return err ? err : wfs_content_load(&s->db, &s->datafiles, manifest, ret);
}

static int commit(struct wfs_repack *r)
{
	struct wfs_store *s = r->file->store;
	struct wfs_content *new = NULL;
	struct stat st;
	int ret = wfs_datafile_stat(&s->datafiles, r->to->staging->id, &st);
	uint64_t shared = r->from->size - r->copied;

	if (ret)
		return ret;
	wfs_crash_at("repack-before-commit");
	wfs_file_begin_change(r->file);
	ret = wfs_db_begin(&s->db);
	if (ret == 0)
		/* Of holes there is nothing to be shared. */
		ret = wfs_db_end(&s->db, publish(r, WFS_MIN(shared, (uint64_t)st.st_blocks * 512),
			&new));
	if (ret) {
		wfs_content_unref(new);
		new = NULL;
	}
	wfs_file_end_change(r->file, new);
	wfs_crash_at("repack-after-commit");
	r->is_done = ret == 0;
	if (ret == 0)
		atomic_store(&s->collect_wanted, true);
	return ret;
}

/* ---- the whole ---- */

int wfs_repack_step(struct wfs_repack *r)
{
	int ret = copy_step(r);

	if (ret || r->at < r->from->size)
		return ret ? ret : 1;
	return commit(r);
}

void wfs_repack_get_progress(const struct wfs_repack *r, struct wfs_repack_progress *ret)
{
	*ret = (struct wfs_repack_progress){ .done = r->at, .total = r->from->size,
		.copied = r->copied };
}

void wfs_repack_end(struct wfs_repack *r)
{
	struct wfs_store *s;
	uint64_t id = 0;

	if (!r)
		return;
	s = r->file->store;
	if (r->to)
		id = r->to->staging->id;
	wfs_content_unref(r->to);
	wfs_content_unref(r->from);
	if (id && !r->is_done)
		wfs_filling_abandon(s, id);
	free(r);
}
