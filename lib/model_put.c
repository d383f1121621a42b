/* lib/model_write.h: tensors come and go; nothing here touches a shard. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/array.h"
#include "lib/compose.h"
#include "lib/crash.h"
#include "lib/file_priv.h"
#include "lib/flush.h"
#include "lib/manifest.h"
#include "lib/model_priv.h"
#include "lib/npy.h"
#include "lib/object.h"
#include "lib/reserve.h"
#include "lib/utf8.h"

static const char *variant_of(const struct wfs_model_name *name)
{
	return name->variant ? name->variant : "";
}

int wfs_gone_add(struct wfs_gone *gone, uint64_t ino)
{
	if (WFS_ARRAY_ROOM(gone->inos, gone->n, gone->room))
		return -ENOMEM;
	gone->inos[gone->n++] = ino;
	return 0;
}

int wfs_model_unlink_inode(struct wfs_store *s, uint64_t ino, struct wfs_gone *gone)
{
	struct wfs_attr a;
	int found = wfs_inode_get(s, ino, &a);

	if (found <= 0)
		return found ? found : -EUCLEAN;
	if (a.nlink <= 1 && wfs_gone_add(gone, ino) != 0)
		return -ENOMEM;
	return wfs_db_run(&s->db, WFS_Q_INODE_NLINK, "iii", INT64_C(-1), wfs_now_ns(), ino);
}

/* ---- what waits ---- */

static int pending_locked(struct wfs_store *s, const struct wfs_model_name *name, uint64_t *ret_ino,
	enum wfs_tensor_form *ret_form)
{
	const char *variant = variant_of(name);
	sqlite3_stmt *row;
	int found = wfs_db_first(&s->db, WFS_Q_TENSOR_GET, &row, "ibb", name->dir, variant,
		strlen(variant), name->tensor, name->tensor_len);

	if (found <= 0)
		return found;
	*ret_ino = (uint64_t)sqlite3_column_int64(row, 0);
	*ret_form = sqlite3_column_int(row, 1) ? WFS_TENSOR_SAFETENSORS : WFS_TENSOR_NPY;
	wfs_db_done(row);
	return *ret_ino ? WFS_PENDING_PUT : WFS_PENDING_REMOVED;
}

int wfs_model_pending(struct wfs_store *s, const struct wfs_model_name *name, uint64_t *ret_ino,
	enum wfs_tensor_form *ret_form)
{
	int err;

	if (atomic_load(&s->pending_tensors) == 0)
		return WFS_PENDING_NOT;
	err = wfs_db_begin_read(&s->db);
	return err ? err : wfs_db_end(&s->db, pending_locked(s, name, ret_ino, ret_form));
}

static int file_locked(struct wfs_store *s, uint64_t ino, struct wfs_model_name *ret,
	enum wfs_tensor_form *ret_form, char **ret_strings)
{
	size_t variant_len, name_len;
	sqlite3_stmt *row;
	char *text;
	int found = wfs_db_first(&s->db, WFS_Q_TENSOR_OF_FILE, &row, "i", ino);

	if (found <= 0)
		return found;
	variant_len = (size_t)sqlite3_column_bytes(row, 1);
	name_len = (size_t)sqlite3_column_bytes(row, 2);
	text = calloc(1, variant_len + name_len + 2);
	if (text) {
		memcpy(text, variant_len ? sqlite3_column_blob(row, 1) : "", variant_len);
		memcpy(text + variant_len + 1, name_len ? sqlite3_column_blob(row, 2) : "",
			name_len);
		*ret = (struct wfs_model_name){.dir = (uint64_t)sqlite3_column_int64(row, 0),
			.variant = variant_len ? text : NULL,
			.tensor = text + variant_len + 1,
			.tensor_len = name_len};
		*ret_form = sqlite3_column_int(row, 3) ? WFS_TENSOR_SAFETENSORS : WFS_TENSOR_NPY;
		*ret_strings = text;
	}
	wfs_db_done(row);
	return text ? 1 : -ENOMEM;
}

int wfs_model_pending_file(struct wfs_store *s, uint64_t ino, struct wfs_model_name *ret,
	enum wfs_tensor_form *ret_form, char **ret_strings)
{
	int err;

	if (atomic_load(&s->pending_tensors) == 0)
		return 0;
	err = wfs_db_begin_read(&s->db);
	return err ? err : wfs_db_end(&s->db, file_locked(s, ino, ret, ret_form, ret_strings));
}

bool wfs_model_is_pending(struct wfs_store *s, uint64_t dir)
{
	sqlite3_stmt *row;
	int found;

	if (atomic_load(&s->pending_tensors) == 0)
		return false;
	if (wfs_db_begin_read(&s->db) != 0)
		return true;
	found = wfs_db_first(&s->db, WFS_Q_TENSOR_VARIANT, &row, "i", dir);
	if (found > 0)
		wfs_db_done(row);
	return wfs_db_end(&s->db, found) != 0;
}

/* ---- what a file says that it is ---- */

struct tensor {
	enum wfs_dtype dtype;
	char *shape; /* JSON; owned */
	uint64_t start, length;
};

static int read_npy(struct wfs_file *f, struct wfs_npy *npy, struct wfs_err *err)
{
	uint8_t head[WFS_NPY_PREFIX] = {0};
	struct wfs_err why = WFS_ERR_INIT;
	WFS_AUTO_FREE uint8_t *buf = NULL;
	uint64_t size, need;
	ssize_t n = wfs_file_size(f, &size);

	if (n == 0)
		n = wfs_file_read(f, head, sizeof(head), 0);
	if (n < 0)
		return (int)n;
	need = wfs_npy_need(head, (size_t)n, size);
	buf = malloc(need + 1);
	if (!buf)
		return -ENOMEM;
	n = wfs_file_read(f, buf, need, 0);
	if (n < 0 || (uint64_t)n < need)
		return n < 0 ? (int)n : -EIO;
	n = wfs_npy_parse(buf, size, npy, &why);
	if (n && why.reason && strcmp(why.reason, "npy-short") == 0 && size == need)
		n = -EINPROGRESS;
	return n ? wfs_err_set(err, (int)n, why.reason, why.offset, "%s", why.text) : 0;
}

static int look_at_safetensors(struct wfs_file *f, struct tensor *ret, struct wfs_err *err)
{
	WFS_AUTO_FREE uint8_t *buf = NULL;
	WFS_AUTO_FREE uint64_t *shape = NULL;
	struct wfs_safetensors st;
	int e = wfs_file_header(f, &buf, &st, err);

	if (e)
		return e;
	if (st.verdict != WFS_SAFETENSORS_VALID)
		e = -EBADMSG;
	else if (st.n_tensors != 1)
		e = wfs_err_set(err, -EBADMSG, "tensor-count", WFS_NO_OFFSET,
			"%zu tensors in a file that is to be one", st.n_tensors);
	if (!e) {
		shape = reallocarray(NULL, st.tensors[0].ndim + 1, sizeof(*shape));
		e = shape ? 0 : -ENOMEM;
	}
	if (!e) {
		size_t ndim = wfs_safetensors_shape(&st, &st.tensors[0], shape, st.tensors[0].ndim);

		ret->dtype = st.tensors[0].dtype;
		ret->start = WFS_SAFETENSORS_PREFIX + st.header_len + st.tensors[0].begin;
		ret->length = st.tensors[0].end - st.tensors[0].begin;
		e = wfs_shape_text(shape, ndim, &ret->shape);
	}
	wfs_safetensors_release(&st);
	return e;
}

/* ---- conversion ---- */

struct converting {
	struct wfs_file *from, *to;
	uint64_t at;
};

static ssize_t read_part(void *ctx, void *buf, size_t len, uint64_t offset)
{
	return wfs_file_read(((struct converting *)ctx)->from, buf, len, offset);
}

static int append_part(void *ctx, const void *buf, size_t len)
{
	struct converting *c = ctx;
	ssize_t n = wfs_file_write(c->to, buf, len, c->at);

	if (n < 0)
		return (int)n;
	c->at += (size_t)n;
	return (size_t)n == len ? 0 : -ENOSPC;
}

static int write_converted(struct converting *c, const struct wfs_npy *npy, uint64_t *ret_start)
{
	WFS_AUTO_FREE uint8_t *header = NULL;
	size_t len;
	int ret = wfs_npy_build(npy->dtype, npy->shape, npy->ndim, &header, &len);

	if (!ret)
		ret = append_part(c, header, len);
	*ret_start = c->at;
	return ret ? ret : wfs_npy_to_c(npy, read_part, append_part, c);
}

/* A file of the same array as safetensors has it. The new inode is the caller's, nlink 0. */
static int convert(struct wfs_store *s, struct wfs_file *f, const struct wfs_npy *npy, uint64_t dir,
	uint64_t *ret, uint64_t *ret_start)
{
	struct converting c = {.from = f};
	struct wfs_new new = {.mode = S_IFREG};
	struct wfs_attr a, old;
	int err = wfs_name_getattr(s, wfs_file_ino(f), &old);

	if (err)
		return err;
	new.mode = old.mode;
	new.uid = old.uid;
	new.gid = old.gid;
	err = wfs_name_create_unnamed(s, dir, &new, &a);
	if (err)
		return err;
	*ret = a.ino;
	err = wfs_file_get(s, a.ino, &c.to);
	if (err)
		return err;
	wfs_file_open(c.to, true);
	err = write_converted(&c, npy, ret_start);
	wfs_file_close(c.to, true);
	wfs_file_unref(c.to);
	return err;
}

/* ---- putting ---- */

static int check_name(const struct wfs_model_name *name, struct wfs_err *err)
{
	size_t bad;

	if (wfs_utf8_check(name->tensor, name->tensor_len, &bad) != WFS_UTF8_VALID)
		return wfs_err_set(err, -EBADMSG, "tensor-name", WFS_NO_OFFSET,
			"the name of the tensor is not UTF-8");
	if (name->tensor_len == strlen("__metadata__") &&
		memcmp(name->tensor, "__metadata__", name->tensor_len) == 0)
		return wfs_err_set(err, -EBADMSG, "tensor-name", WFS_NO_OFFSET,
			"no tensor can have the name __metadata__");
	return 0;
}

/* Shards that are left out of the model would be replaced, and what they have be lost. */
static int get_whole_model(struct wfs_store *s, const struct wfs_model_name *name,
	struct wfs_model **ret, struct wfs_err *err)
{
	struct wfs_model *m;
	int failed = wfs_model_get(s, name->dir, name->variant, &m);

	if (failed)
		return failed;
	if (m->left_out[0]) {
		failed = wfs_err_set(
			err, -EBUSY, "shards-left-out", WFS_NO_OFFSET, "%s", m->left_out);
		wfs_model_unref(m);
		return failed;
	}
	*ret = m;
	return 0;
}

/* Both are still there. */
static int check_both(struct wfs_store *s, uint64_t dir, uint64_t ino)
{
	struct wfs_attr a;
	int found = wfs_inode_get(s, dir, &a);

	if (found <= 0 || a.nlink == 0)
		return found < 0 ? found : -ENOENT;
	found = ino ? wfs_inode_get(s, ino, &a) : 0;
	if (found < 0 || !ino)
		return found;
	return found ? 0 : -ENOENT;
}

static int set_row(struct wfs_store *s, const struct wfs_model_name *name,
	enum wfs_tensor_form form, uint64_t ino, const struct tensor *t, struct wfs_gone *gone)
{
	const char *variant = variant_of(name);
	enum wfs_tensor_form old_form;
	uint64_t old = 0;
	int found = check_both(s, name->dir, ino), ret;

	if (found)
		return found;
	found = pending_locked(s, name, &old, &old_form);
	if (found < 0)
		return found;
	ret = 0;
	if (found == WFS_PENDING_PUT && old != ino)
		ret = wfs_model_unlink_inode(s, old, gone);
	if (!ret && ino && old != ino)
		ret = wfs_db_run(&s->db, WFS_Q_INODE_NLINK, "iii", INT64_C(1), wfs_now_ns(), ino);
	if (!ret)
		ret = wfs_db_run(&s->db, WFS_Q_TENSOR_SET, "ibboittii", name->dir, variant,
			strlen(variant), name->tensor, name->tensor_len, ino, (uint64_t)form,
			t ? wfs_dtype_name(t->dtype) : "", t ? t->shape : "[]", t ? t->start : 0,
			t ? t->length : 0);
	if (!ret && found == WFS_PENDING_NOT)
		atomic_fetch_add(&s->pending_tensors,
			1); /* one too many if this is undone: it is looked in vain */
	return ret;
}

/*
 * Whose bytes are not on the disk when the power goes was not put (lib/power.h). One that was
 * put under another name before is taken out there, and is not to be lost by that.
 */
static int flush_soon(struct wfs_store *s, uint64_t ino)
{
	struct wfs_attr a;
	int ret = wfs_name_getattr(s, ino, &a);

	if (ret || !a.data_file)
		return ret;
	return a.nlink > 0 ? wfs_flush_inode(s, ino) : wfs_flush_later(s, ino);
}

static int put_row(struct wfs_store *s, const struct wfs_model_name *name,
	enum wfs_tensor_form form, uint64_t ino, const struct tensor *t, struct wfs_gone *gone)
{
	enum wfs_tensor_form old_form;
	uint64_t old;
	int ret, tries = 0;

	ret = ino ? flush_soon(s, ino) : 0;
	if (ret)
		return ret;
	pthread_mutex_lock(wfs_put_lock(s, name->dir));
	if (ino && wfs_model_pending(s, name, &old, &old_form) != WFS_PENDING_NOT) {
		/* What waits may be on the disk, and is nowhere else: as with a rename over another file. */
		pthread_mutex_unlock(wfs_put_lock(s, name->dir));
		ret = wfs_flush_inode(s, ino);
		if (ret)
			return ret;
		pthread_mutex_lock(wfs_put_lock(s, name->dir));
	}
	wfs_crash_at("put-before-commit");
	/* A full disk prevents no removal: lib/reserve.h. */
	do {
		ret = wfs_db_begin(&s->db);
		if (!ret)
			ret = wfs_db_end(&s->db, set_row(s, name, form, ino, t, gone));
	} while (ret == -ENOSPC && !ino && wfs_reserve_make_room(s, &tries));
	wfs_crash_at("put-after-commit");
	pthread_mutex_unlock(wfs_put_lock(s, name->dir));
	return ret;
}

static int put_npy(struct wfs_store *s, const struct wfs_model_name *name, struct wfs_file *f,
	struct wfs_gone *gone, struct wfs_err *err)
{
	struct wfs_npy npy;
	struct tensor t = {.shape = NULL};
	uint64_t ino = wfs_file_ino(f), converted = 0;
	int ret = read_npy(f, &npy, err);

	if (!ret)
		ret = wfs_shape_text(npy.shape, npy.ndim, &t.shape);
	if (ret)
		return ret;
	t.dtype = npy.dtype;
	t.start = npy.data_at;
	t.length = npy.data_len;
	if (npy.big_endian || (npy.fortran_order && npy.ndim > 1))
		ret = convert(s, f, &npy, name->dir, &converted, &t.start);
	if (!ret)
		ret = put_row(s, name, WFS_TENSOR_NPY, converted ? converted : ino, &t, gone);
	free(t.shape);
	if (converted && wfs_gone_add(gone, ret ? converted : ino) != 0)
		return ret ? ret : 0; /* it is dropped at the next mount */
	return ret;
}

static int put_safetensors(struct wfs_store *s, const struct wfs_model_name *name,
	struct wfs_file *f, struct wfs_gone *gone, struct wfs_err *err)
{
	struct tensor t = {.shape = NULL};
	int ret = look_at_safetensors(f, &t, err);

	if (!ret)
		ret = put_row(s, name, WFS_TENSOR_SAFETENSORS, wfs_file_ino(f), &t, gone);
	free(t.shape);
	return ret;
}

int wfs_model_put(struct wfs_store *s, const struct wfs_model_name *name, enum wfs_tensor_form form,
	uint64_t ino, struct wfs_gone *gone, struct wfs_err *err)
{
	struct wfs_model *m;
	struct wfs_file *f;
	int ret = check_name(name, err);

	if (!ret)
		ret = get_whole_model(s, name, &m, err);
	if (ret)
		return ret;
	wfs_model_unref(m);
	ret = wfs_file_get(s, ino, &f);
	if (ret)
		return ret;
	ret = form == WFS_TENSOR_NPY ? put_npy(s, name, f, gone, err)
				     : put_safetensors(s, name, f, gone, err);
	wfs_file_unref(f);
	return ret;
}

int wfs_model_remove(struct wfs_store *s, const struct wfs_model_name *name, struct wfs_gone *gone,
	struct wfs_err *err)
{
	enum wfs_tensor_form form;
	struct wfs_model *m;
	uint64_t ino;
	size_t i;
	int pending = wfs_model_pending(s, name, &ino, &form);
	int ret = pending < 0 ? pending : get_whole_model(s, name, &m, err);

	if (ret)
		return ret;
	if (pending == WFS_PENDING_REMOVED ||
		(pending == WFS_PENDING_NOT &&
			!wfs_model_find(m, name->tensor, name->tensor_len, &i)))
		ret = -ENOENT;
	wfs_model_unref(m);
	return ret ? ret : put_row(s, name, WFS_TENSOR_NPY, 0, NULL, gone);
}

/* ---- a file that shares a tensor's bytes ---- */

/* The object of tensor i, or 0 for one without bytes. */
static int object_of(const struct wfs_model *m, size_t i, uint64_t *ret)
{
	const struct wfs_safetensors_tensor *t = wfs_model_tensor(m, i);
	uint64_t manifest = wfs_model_shard_of(m, i)->content->manifest;
	int found;

	*ret = 0;
	if (t->begin == t->end)
		return 0;
	found = wfs_db_number(
		&m->store->db, WFS_Q_MANIFEST_NTH_ID, ret, "ii", manifest, wfs_model_place(m, i));
	return found < 0 ? found : found ? 0 : -ESTALE;
}

int wfs_model_insert_bytes(struct wfs_store *s, const void *bytes, size_t len, uint64_t *ret)
{
	struct wfs_digest digest = wfs_digest_of(bytes, len, s->options.digest_bits);
	struct wfs_object o = {.length = len};
	int64_t after = -1;
	int found;

	while ((found = wfs_object_find(&s->db, &digest, len, after, &o)) > 0) {
		WFS_AUTO_FREE uint8_t *have = malloc(len);
		struct wfs_content *c;
		ssize_t n = have ? wfs_content_of_object(&s->db, &s->datafiles, &o, &c) : -ENOMEM;

		if (n == 0) {
			n = wfs_content_read(c, have, len, 0);
			wfs_content_unref(c);
		}
		if (have && n == (ssize_t)len && memcmp(have, bytes, len) == 0) {
			*ret = o.id;
			return 0;
		}
		after = (int64_t)o.ordinal;
	}
	if (found < 0)
		return found;
	o = (struct wfs_object){.length = len};
	found = wfs_object_insert(&s->db, &digest, &o, bytes);
	*ret = o.id;
	return found;
}

int wfs_model_make_inode(struct wfs_store *s, const struct wfs_attr *like, unsigned links,
	const uint64_t *ids, size_t n, uint64_t size, uint64_t *ret)
{
	int64_t now = wfs_now_ns();
	uint64_t manifest;
	bool shared;
	int err = wfs_manifest_put(&s->db, ids, n, size, &manifest, &shared);

	if (!err)
		err = wfs_db_run(&s->db, WFS_Q_INODE_INSERT, "iiiiiiiiiibo", (uint64_t)like->mode,
			(uint64_t)like->uid, (uint64_t)like->gid, (uint64_t)links, UINT64_C(0),
			size, now, now, now, now, NULL, (size_t)0, UINT64_C(0));
	if (err)
		return err;
	*ret = wfs_db_insert_id(&s->db);
	return wfs_db_run(&s->db, WFS_Q_INODE_SEAL, "iiiiii", manifest, size, (size + 511) / 512,
		now, now, *ret);
}

static int clone_locked(const struct wfs_model *m, size_t i, const uint8_t *header, size_t len,
	const struct wfs_new *new, uint64_t *ret)
{
	const struct wfs_safetensors_tensor *t = wfs_model_tensor(m, i);
	const struct wfs_attr like = {.mode = new->mode, .uid = new->uid, .gid = new->gid};
	uint64_t ids[2];
	int err = wfs_model_insert_bytes(m->store, header, len, &ids[0]);

	if (!err)
		err = object_of(m, i, &ids[1]);
	return err ? err
		   : wfs_model_make_inode(m->store, &like, 0, ids, ids[1] ? 2 : 1,
			     len + (t->end - t->begin), ret);
}

int wfs_model_clone(struct wfs_store *s, const struct wfs_model_name *name,
	enum wfs_tensor_form form, const struct wfs_new *new, uint64_t *ret, struct wfs_gone *gone,
	struct wfs_err *err)
{
	WFS_AUTO_FREE uint8_t *header = NULL;
	struct wfs_model *m;
	size_t i, len;
	int e = wfs_model_settle(s, name->dir, gone, err);

	if (!e)
		e = wfs_model_get(s, name->dir, name->variant, &m);
	if (e)
		return e;
	if (wfs_model_find(m, name->tensor, name->tensor_len, &i))
		e = wfs_model_tensor_header(m, i, form, &header, &len);
	else if (m->left_out[0]) /* it may be in one of those */
		e = wfs_err_set(err, -EBUSY, "shards-left-out", WFS_NO_OFFSET, "%s", m->left_out);
	else
		e = -ENOENT;
	if (!e)
		e = wfs_db_begin(&s->db);
	if (!e)
		e = wfs_db_end(&s->db, clone_locked(m, i, header, len, new, ret));
	wfs_model_unref(m);
	return e;
}
