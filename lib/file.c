#include "lib/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/file_priv.h"
#include "lib/flush.h"
#include "lib/manifest.h"
#include "lib/quota.h"

#define COPY_CHUNK (UINT64_C(1) << 20)
#define COPY_MAX (UINT64_C(128) << 20) /* bytes copied in one call, so that it can be interrupted */

/* ---- the table of files in use ---- */

static struct wfs_file *find_or_insert(struct wfs_store *s, uint64_t ino)
{
	struct wfs_file **head = &s->files[ino % WFS_FILE_BUCKETS];
	struct wfs_file *f;

	pthread_mutex_lock(&s->files_lock);
	for (f = *head; f && f->ino != ino; f = f->next)
		;
	if (!f) {
		f = calloc(1, sizeof(*f));
		if (f) {
			f->store = s;
			f->ino = ino;
			pthread_mutex_init(&f->lock, NULL);
			pthread_cond_init(&f->changed, NULL);
			f->next = *head;
			*head = f;
		}
	}
	if (f)
		f->refs++;
	pthread_mutex_unlock(&s->files_lock);
	return f;
}

void wfs_file_unref(struct wfs_file *f)
{
	struct wfs_store *s = f->store;
	struct wfs_file **p = &s->files[f->ino % WFS_FILE_BUCKETS];
	bool last;

	pthread_mutex_lock(&s->files_lock);
	last = --f->refs == 0;
	if (last) {
		while (*p != f)
			p = &(*p)->next;
		*p = f->next;
	}
	pthread_mutex_unlock(&s->files_lock);
	if (!last)
		return;
	wfs_content_unref(f->content);
	pthread_cond_destroy(&f->changed);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

static int load_locked(struct wfs_store *s, uint64_t ino, struct wfs_content **ret)
{
	struct wfs_attr a;
	int found = wfs_inode_get(s, ino, &a);

	if (found <= 0)
		return found ? found : -ENOENT;
	if (!S_ISREG(a.mode))
		return S_ISDIR(a.mode) ? -EISDIR : -EINVAL;
	if (a.verdict == WFS_VERDICT_DAMAGED)
		return -EIO;
	if (a.manifest)
		return wfs_content_load(&s->db, &s->datafiles, a.manifest, ret);
	*ret = a.data_file ? wfs_content_new_staging(&s->datafiles, a.data_file)
			   : wfs_content_new_empty(&s->datafiles);
	return *ret ? 0 : -ENOMEM;
}

static int load(struct wfs_file *f)
{
	struct wfs_store *s = f->store;
	int ret = wfs_db_begin_read(&s->db);

	if (ret)
		return ret;
	ret = wfs_db_end(&s->db, load_locked(s, f->ino, &f->content));
	if (ret == -EUCLEAN) {
		wfs_store_log(s, "inode %llu: its manifest does not add up; run weightfs fsck",
			(unsigned long long)f->ino);
		ret = -EIO;
	}
	return ret;
}

int wfs_file_get(struct wfs_store *s, uint64_t ino, struct wfs_file **ret)
{
	struct wfs_file *f = find_or_insert(s, ino);
	int err = 0;

	if (!f)
		return -ENOMEM;
	pthread_mutex_lock(&f->lock);
	if (!f->content)
		err = load(f);
	pthread_mutex_unlock(&f->lock);
	if (err)
		wfs_file_unref(f);
	else
		*ret = f;
	return err;
}

uint64_t wfs_file_ino(const struct wfs_file *f)
{
	return f->ino;
}

/* ---- who holds it ---- */

void wfs_file_open(struct wfs_file *f, bool writes)
{
	if (!writes)
		return;
	pthread_mutex_lock(&f->lock);
	f->writers++;
	f->was_waited_for = false;
	atomic_store(&f->stop_seal, true);
	pthread_mutex_unlock(&f->lock);
}

bool wfs_file_close(struct wfs_file *f, bool writes)
{
	bool wants_seal;

	pthread_mutex_lock(&f->lock);
	if (writes)
		f->writers--;
	wants_seal = writes && f->writers == 0 && f->content->staging;
	pthread_mutex_unlock(&f->lock);
	return wants_seal;
}

bool wfs_file_was_written(struct wfs_file *f)
{
	struct wfs_content *c = wfs_file_content(f);
	bool changed = false;
	struct stat st;

	if (c->staging && wfs_datafile_stat(c->table, c->staging->id, &st) == 0) {
		pthread_mutex_lock(&f->lock);
		changed = f->seen.data_file != c->staging->id || f->seen.size != (uint64_t)st.st_size ||
			  f->seen.mtime.tv_sec != st.st_mtim.tv_sec ||
			  f->seen.mtime.tv_nsec != st.st_mtim.tv_nsec;
		f->seen.data_file = c->staging->id;
		f->seen.size = (uint64_t)st.st_size;
		f->seen.mtime = st.st_mtim;
		pthread_mutex_unlock(&f->lock);
	}
	wfs_content_unref(c);
	if (changed)
		atomic_store(&f->unjudged, true);
	return changed;
}

bool wfs_file_is_dirty(struct wfs_file *f)
{
	bool dirty;

	pthread_mutex_lock(&f->lock);
	dirty = f->content->staging != NULL;
	pthread_mutex_unlock(&f->lock);
	return dirty;
}

struct wfs_content *wfs_file_content(struct wfs_file *f)
{
	struct wfs_content *c;

	pthread_mutex_lock(&f->lock);
	c = wfs_content_ref(f->content);
	pthread_mutex_unlock(&f->lock);
	return c;
}

void wfs_file_begin_change(struct wfs_file *f)
{
	pthread_mutex_lock(&f->lock);
	while (f->changing)
		pthread_cond_wait(&f->changed, &f->lock);
	f->changing = true;
	pthread_mutex_unlock(&f->lock);
}

void wfs_file_end_change(struct wfs_file *f, struct wfs_content *content)
{
	struct wfs_content *old = NULL;
	struct wfs_datafile *unpinned;

	pthread_mutex_lock(&f->lock);
	if (content) {
		old = f->content;
		f->content = content;
	}
	f->changing = false;
	unpinned = wfs_pin_take_unused(f);
	pthread_cond_broadcast(&f->changed);
	pthread_mutex_unlock(&f->lock);
	wfs_pin_drop(f, unpinned);
	wfs_content_unref(old);
}

int wfs_file_staging(struct wfs_file *f, uint64_t keep, struct wfs_content **ret)
{
	struct wfs_content *old, *new = NULL;
	int err = 0;

	/* The usual case: it is dirty already. */
	old = wfs_file_content(f);
	if (old->staging) {
		*ret = old;
		return 0;
	}
	wfs_content_unref(old);

	wfs_file_begin_change(f);
	old = wfs_file_content(f);
	if (old->staging) {
		*ret = old;
		wfs_file_end_change(f, NULL);
		return 0;
	}
	err = f->store->db.read_only ? -EROFS : wfs_unseal(f, old, keep, &new);
	if (!err)
		*ret = wfs_content_ref(new);
	wfs_file_end_change(f, new);
	wfs_content_unref(old);
	return err;
}

/* ---- reading ---- */

const char *wfs_file_layout(struct wfs_file *f, size_t *ret_extents)
{
	struct wfs_content *c = wfs_file_content(f);
	const char *layout = wfs_content_layout(c);

	*ret_extents = c->n;
	wfs_content_unref(c);
	return layout;
}

int wfs_file_size(struct wfs_file *f, uint64_t *ret)
{
	struct wfs_content *c = wfs_file_content(f);
	int err = wfs_content_size(c, ret);

	wfs_content_unref(c);
	return err;
}

ssize_t wfs_file_read(struct wfs_file *f, void *buf, size_t len, uint64_t offset)
{
	struct wfs_content *c = wfs_file_content(f);
	ssize_t n = wfs_content_read(c, buf, len, offset);

	wfs_content_unref(c);
	return n;
}

int64_t wfs_file_seek(struct wfs_file *f, uint64_t offset, int whence)
{
	struct wfs_content *c = wfs_file_content(f);
	int64_t found = wfs_content_seek(c, offset, whence);

	wfs_content_unref(c);
	return found;
}

int wfs_file_header(struct wfs_file *f, uint8_t **ret_buf, struct wfs_safetensors *ret,
	struct wfs_err *err)
{
	struct wfs_content *c = wfs_file_content(f);
	int e = wfs_content_header(c, ret_buf, ret, err);

	wfs_content_unref(c);
	return e;
}

/* ---- writing ---- */

/* What a change does to the staging file. */
struct change {
	uint64_t keep;           /* bytes at the beginning that it does not make superfluous */
	uint64_t offset, length; /* where it may need blocks; length 0: nowhere */
};

static ssize_t do_counted(struct wfs_store *s, int fd, const struct change *change,
	ssize_t (*fn)(int fd, const void *arg), const void *arg)
{
	struct wfs_quota_write w;
	ssize_t ret = wfs_quota_begin_write(s, fd, change->offset, change->length, &w);

	if (ret)
		return ret;
	ret = fn(fd, arg);
	wfs_quota_end_write(s, fd, &w);
	return ret;
}

/* Run `fn` on the descriptor of the staging file. */
static ssize_t with_staging(struct wfs_file *f, const struct change *change,
	ssize_t (*fn)(int fd, const void *arg), const void *arg)
{
	struct wfs_content *c;
	ssize_t ret;
	int fd;
	int err = atomic_load(&f->store->db.is_lost) ? -EIO : wfs_file_staging(f, change->keep, &c);

	if (err)
		return err;
	atomic_store(&f->unjudged, true);
	fd = wfs_datafile_use_to_write(c->table, c->staging);
	if (fd < 0) {
		ret = fd == -ENOENT ? -EIO : fd;
	} else {
		ret = do_counted(f->store, fd, change, fn, arg);
		wfs_datafile_unuse(c->table, c->staging);
	}
	wfs_content_unref(c);
	return ret;
}

struct write_args {
	const void *buf;
	size_t len;
	uint64_t offset;
};

static ssize_t do_write(int fd, const void *arg)
{
	const struct write_args *a = arg;

	return wfs_pwrite_some(fd, a->buf, a->len, a->offset);
}

ssize_t wfs_file_write(struct wfs_file *f, const void *buf, size_t len, uint64_t offset)
{
	struct write_args a = { buf, len, offset };
	uint64_t end;

	if (wfs_add_overflows(offset, len, &end) || end > INT64_MAX)
		return -EFBIG;
	return with_staging(f, &(struct change){ UINT64_MAX, offset, len }, do_write, &a);
}

static ssize_t do_truncate(int fd, const void *arg)
{
	return ftruncate(fd, (off_t) * (const uint64_t *)arg) != 0 ? -errno : 0;
}

int wfs_file_truncate(struct wfs_file *f, uint64_t size)
{
	struct wfs_content *c;
	int ret;

	if (size > INT64_MAX)
		return -EFBIG;
	ret = wfs_flush_take_back(f);
	if (ret == 0)
		ret = (int)with_staging(f, &(struct change){ size, 0, 0 }, do_truncate, &size);
	if (ret || size > 0)
		return ret;
	c = wfs_file_content(f);
	if (c->staging)
		wfs_store_staging_is_empty(f->store, c->staging);
	wfs_content_unref(c);
	return 0;
}

struct fallocate_args {
	int mode;
	uint64_t offset, len;
};

static ssize_t do_fallocate(int fd, const void *arg)
{
	const struct fallocate_args *a = arg;

	return fallocate(fd, a->mode, (off_t)a->offset, (off_t)a->len) != 0 ? -errno : 0;
}

int wfs_file_fallocate(struct wfs_file *f, int mode, uint64_t offset, uint64_t len)
{
	struct fallocate_args a = { mode, offset, len };
	struct change change = { UINT64_MAX, offset, 0 };
	uint64_t end;

	if (wfs_add_overflows(offset, len, &end) || end > INT64_MAX)
		return -EFBIG;
	change.length = mode & FALLOC_FL_PUNCH_HOLE ? 0 : len;
	return (int)with_staging(f, &change, do_fallocate, &a);
}

int wfs_file_sync(struct wfs_file *f)
{
	struct wfs_db *db = &f->store->db;
	uint64_t commits = wfs_db_commits(db);
	bool first;
	/* A sealed file's bytes were made durable before it was sealed. */
	int ret = wfs_flush_file(f, &first);

	return ret ? ret : wfs_store_sync_to(f->store, first ? wfs_db_commits(db) : commits);
}

/* ---- copying ---- */

struct copy_args {
	struct wfs_content *in;
	uint64_t in_off, out_off, len;
};

/* Through a buffer: what copy_file_range cannot do. */
static ssize_t copy_by_hand(int fd, const struct copy_args *a)
{
	WFS_AUTO_FREE char *buf = malloc(COPY_CHUNK);
	uint64_t done = 0;

	if (!buf)
		return -ENOMEM;
	while (done < a->len) {
		size_t want = WFS_MIN(COPY_CHUNK, a->len - done);
		ssize_t n = wfs_content_read(a->in, buf, want, a->in_off + done);
		ssize_t put = n > 0 ? wfs_pwrite_some(fd, buf, (size_t)n, a->out_off + done) : n;

		if (put <= 0)
			return done ? (ssize_t)done : put;
		done += (uint64_t)put;
		if (put < n || (size_t)n < want)
			break;
	}
	return (ssize_t)done;
}

static ssize_t copy_by_kernel(int fd, const struct copy_args *a, struct wfs_datafile *df)
{
	off_t in_off = (off_t)a->in_off, out_off = (off_t)a->out_off;
	int in_fd = wfs_datafile_use(a->in->table, df);
	ssize_t n;

	if (in_fd < 0)
		return in_fd;
	n = copy_file_range(in_fd, &in_off, fd, &out_off, a->len, 0);
	if (n < 0)
		n = -errno;
	wfs_datafile_unuse(a->in->table, df);
	return n;
}

static ssize_t do_copy(int fd, const void *arg)
{
	const struct copy_args *a = arg;
	struct wfs_datafile *whole = wfs_content_whole(a->in);
	ssize_t n = -EXDEV;

	if (whole)
		n = copy_by_kernel(fd, a, whole);
	if (n == -EXDEV || n == -EOPNOTSUPP || n == -EINVAL || n == -ENOSYS)
		n = copy_by_hand(fd, a);
	return n;
}

/* Both have the same sealed content already: the rest of a clone that took several calls. */
static bool is_same_content(struct wfs_file *out, const struct wfs_content *in)
{
	struct wfs_content *c = wfs_file_content(out);
	bool same = in->manifest && c->manifest == in->manifest;

	wfs_content_unref(c);
	return same;
}

static ssize_t copy_from(struct wfs_content *in, uint64_t in_off, struct wfs_file *out,
	uint64_t out_off, uint64_t len)
{
	uint64_t size;
	int err = wfs_content_size(in, &size);

	if (err || in_off >= size)
		return err;
	len = WFS_MIN(len, size - in_off);
	if (in_off == out_off && is_same_content(out, in))
		return (ssize_t)len;
	if (out_off > INT64_MAX - len)
		return -EFBIG;
	len = WFS_MIN(len, COPY_MAX);
	return with_staging(out, &(struct change){ UINT64_MAX, out_off, len }, do_copy,
		&(struct copy_args){ in, in_off, out_off, len });
}

/* A whole file onto an empty one. */
static bool is_whole_copy(struct wfs_file *in, struct wfs_file *out, uint64_t len, uint64_t *size)
{
	uint64_t out_size;

	return wfs_file_size(in, size) == 0 && wfs_file_size(out, &out_size) == 0 && *size > 0 &&
	       *size <= len && out_size == 0;
}

ssize_t wfs_file_copy(struct wfs_file *in, uint64_t in_off, struct wfs_file *out, uint64_t out_off,
	uint64_t len)
{
	struct wfs_content *c;
	uint64_t size;
	ssize_t n;

	if (in_off == 0 && out_off == 0 && in != out && is_whole_copy(in, out, len, &size)) {
		int shared = wfs_clone(in, out);

		if (shared)
			return shared < 0 ? shared : (ssize_t)size;
	}
	c = wfs_file_content(in);
	n = copy_from(c, in_off, out, out_off, len);
	wfs_content_unref(c);
	return n;
}

/* ---- looking inside ---- */

static int add_piece(struct wfs_piece **pieces, size_t *n, uint64_t offset, sqlite3_stmt *row)
{
	struct wfs_piece *p;
	struct wfs_digest digest = { { 0 } };
	size_t len = (size_t)sqlite3_column_bytes(row, 4);

	if ((*n & (*n - 1)) == 0) { /* a power of two: full */
		p = reallocarray(*pieces, *n ? 2 * *n : 1, sizeof(*p));
		if (!p)
			return -ENOMEM;
		*pieces = p;
	}
	p = &(*pieces)[(*n)++];
	p->offset = offset;
	p->object = (uint64_t)sqlite3_column_int64(row, 0);
	p->length = (uint64_t)sqlite3_column_int64(row, 1);
	p->refs = (uint64_t)sqlite3_column_int64(row, 5);
	if (len)
		memcpy(digest.bytes, sqlite3_column_blob(row, 4), WFS_MIN(len, sizeof(digest.bytes)));
	wfs_digest_text(&digest, p->digest);
	return 0;
}

static int pieces_locked(struct wfs_store *s, uint64_t ino, struct wfs_piece **ret, size_t *ret_n)
{
	sqlite3_stmt *row;
	struct wfs_attr a;
	uint64_t offset = 0;
	int more = wfs_inode_get(s, ino, &a);

	if (more <= 0)
		return more ? more : -ENOENT;
	if (a.data_file)
		return -EBUSY;
	for (more = wfs_db_first(&s->db, WFS_Q_MANIFEST_LOAD, &row, "i", a.manifest); more > 0;
		more = wfs_db_next(&s->db, row)) {
		int err = add_piece(ret, ret_n, offset, row);

		if (err) {
			wfs_db_done(row);
			return err;
		}
		offset += (*ret)[*ret_n - 1].length;
	}
	return more;
}

int wfs_file_pieces(struct wfs_store *s, uint64_t ino, struct wfs_piece **ret, size_t *ret_n)
{
	struct wfs_piece *pieces = NULL;
	size_t n = 0;
	int err = wfs_db_begin_read(&s->db);

	if (!err)
		err = wfs_db_end(&s->db, pieces_locked(s, ino, &pieces, &n));
	if (err) {
		free(pieces);
		return err;
	}
	*ret = pieces;
	*ret_n = n;
	return 0;
}
