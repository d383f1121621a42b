/* Tensors of directory "m", put and taken away as through `.tensors`. */
#include "tests/faults/world_priv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/name.h"
#include "lib/npy.h"
#include "tests/faults/fault.h"

static int model_dir(struct world *w, uint64_t *ret)
{
	return world_inode(w, "m", ret);
}

void world_mkdir_model(struct world *w)
{
	struct wfs_new new = { .mode = S_IFDIR | 0755 };
	struct wfs_attr a;

	if (w->store && world_did(w, wfs_name_create(w->store, WFS_ROOT_INO, "m", &new, &a), "mkdir", "m"))
		world_set(world_name(w, "m"), EMPTY);
}

static int write_array(struct wfs_file *f, const uint8_t *head, size_t len, const uint8_t *bytes)
{
	ssize_t n = wfs_file_write(f, head, len, 0);

	if (n >= 0)
		n = (size_t)n < len ? -ENOSPC : wfs_file_write(f, bytes, EACH, len);
	return n < 0 ? (int)n : (size_t)n < EACH ? -ENOSPC : 0;
}

#define TURNED_HEAD 128

/* The header of numbers of two bytes, the high one first. */
static void make_turned_head(uint8_t head[TURNED_HEAD])
{
	int n = snprintf((char *)head + 10, TURNED_HEAD - 10,
		"{'descr': '>u2', 'fortran_order': False, 'shape': (%zu,), }", EACH / 2);

	memcpy(head, "\x93NUMPY\x01\x00\x76\x00", 10);
	memset(head + 10 + n, ' ', TURNED_HEAD - 10 - (size_t)n);
	head[TURNED_HEAD - 1] = '\n';
}

static int write_npy(struct world *w, uint64_t ino, const uint8_t *bytes, bool is_turned)
{
	uint64_t shape[1] = { EACH };
	WFS_AUTO_FREE uint8_t *head = NULL;
	uint8_t turned[TURNED_HEAD];
	struct wfs_file *f;
	size_t len;
	int ret = wfs_file_get(w->store, ino, &f);

	if (ret)
		return ret;
	wfs_file_open(f, true);
	make_turned_head(turned);
	if (!is_turned)
		ret = wfs_npy_build(WFS_DTYPE_U8, shape, 1, &head, &len);
	if (ret == 0)
		ret = is_turned ? write_array(f, turned, sizeof(turned), bytes) : write_array(f, head, len, bytes);
	wfs_file_close(f, true);
	wfs_file_unref(f);
	return ret;
}

static void drop_gone(struct world *w, struct wfs_gone *gone)
{
	if (gone->n)
		world_did(w, wfs_name_drop(w->store, gone->inos, gone->n), "drop", "old shards");
	free(gone->inos);
}

static struct name *tensor_of(struct world *w, const char *tensor)
{
	char path[32];

	snprintf(path, sizeof(path), "m/%s", tensor);
	return world_name(w, path);
}

/* A shard that cannot be read is one that is left out: the model is then not changed. */
static int busy_or(const struct world *w, int ret)
{
	return ret == -EBUSY && w->m->reads ? -EIO : ret;
}

/* The file `ino`, which has no name, becomes the tensor, or nothing. */
static int put_file(struct world *w, uint64_t dir, const char *tensor, uint64_t ino, int ret)
{
	struct wfs_model_name name = { .dir = dir, .tensor = tensor, .tensor_len = strlen(tensor) };
	struct wfs_gone gone = { .inos = NULL };
	struct wfs_err err = WFS_ERR_INIT;

	if (ret == 0)
		ret = wfs_model_put(w->store, &name, WFS_TENSOR_NPY, ino, &gone, &err);
	drop_gone(w, &gone);
	if (ret)
		world_did(w, wfs_name_drop(w->store, &ino, 1), "drop", "what was not put");
	return busy_or(w, ret);
}

static int put_bytes(struct world *w, const char *tensor, const uint8_t *bytes, bool is_turned)
{
	struct wfs_new new = { .mode = S_IFREG | 0600 };
	struct wfs_attr a;
	uint64_t dir = 0;
	int ret = model_dir(w, &dir);

	if (ret == 0)
		ret = wfs_name_create_unnamed(w->store, dir, &new, &a);
	return ret ? ret : put_file(w, dir, tensor, a.ino, write_npy(w, a.ino, bytes, is_turned));
}

static uint8_t *make_bytes(uint64_t seed, bool is_turned)
{
	uint8_t *bytes;

	fault_pause();
	bytes = world_noise(EACH, seed);
	fault_resume();
	for (size_t i = 0; is_turned && i < EACH; i += 2) {
		uint8_t first = bytes[i];

		bytes[i] = bytes[i + 1];
		bytes[i + 1] = first;
	}
	return bytes;
}

static void put_tensor(struct world *w, const char *tensor, uint64_t seed, bool is_turned)
{
	WFS_AUTO_FREE uint8_t *bytes = NULL;
	struct name *n = tensor_of(w, tensor);

	if (!world_is_there(w, "m"))
		return;
	bytes = make_bytes(seed, is_turned);
	if (!world_wrote(w, put_bytes(w, tensor, bytes, is_turned), n->name))
		return;
	world_set(n, SMALL);
	n->tensor_seed = seed;
}

void world_put_tensor(struct world *w, const char *tensor, uint64_t seed)
{
	put_tensor(w, tensor, seed, false);
}

void world_put_turned(struct world *w, const char *tensor, uint64_t seed)
{
	put_tensor(w, tensor, seed, true);
}

/* As the driver does: another file of its bytes is put under the new name. */
void world_rename_tensor(struct world *w, const char *from, const char *to)
{
	struct wfs_model_name name = { .tensor = from, .tensor_len = strlen(from) };
	struct name *a = tensor_of(w, from), *b = tensor_of(w, to);
	struct wfs_new new = { .mode = S_IFREG | 0600 };
	struct wfs_gone gone = { .inos = NULL };
	struct wfs_err err = WFS_ERR_INIT;
	uint64_t ino = 0;
	int ret;

	if (!w->store || world_now(a) == ABSENT || !world_did(w, model_dir(w, &name.dir), "look up", "m"))
		return;
	ret = wfs_model_clone(w->store, &name, WFS_TENSOR_NPY, &new, &ino, &gone, &err);
	drop_gone(w, &gone);
	/* One whose bytes could not be made durable waits until it is put again. */
	if (ret == -ENOENT && w->m->syncs && fault_hits())
		return;
	if (!world_did(w, busy_or(w, ret), "clone", a->name) ||
		!world_did(w, put_file(w, name.dir, to, ino, 0), "put", b->name))
		return;
	world_set(b, SMALL);
	b->tensor_seed = a->tensor_seed;
	world_remove_tensor(w, from);
}

void world_reshard(struct world *w, uint64_t max_shard_size)
{
	struct wfs_gone gone = { .inos = NULL };
	struct wfs_err err = WFS_ERR_INIT;
	uint64_t dir = 0;
	char text[24];
	int ret;

	if (!world_is_there(w, "m") || !world_did(w, model_dir(w, &dir), "look up", "m"))
		return;
	snprintf(text, sizeof(text), "%llu", (unsigned long long)max_shard_size);
	ret = wfs_xattr_set(w->store, dir, WFS_XATTR_MAX_SHARD_SIZE, text, strlen(text), 0);
	if (!world_did(w, ret, "setxattr", "m"))
		return;
	world_did(w, busy_or(w, wfs_model_reshard(w->store, dir, &gone, &err)), "reshard", err.text);
	drop_gone(w, &gone);
}

static void look_at_tensor(struct world *w, const struct wfs_model *m, size_t i)
{
	struct wfs_content *c = NULL;
	uint64_t *shape = NULL;
	char digest[40], byte;
	int ret = wfs_model_tensor_file(m, i, WFS_TENSOR_NPY, &c);

	if (ret == 0) {
		ret = (int)wfs_content_read(c, &byte, 1, c->size - 1);
		ret = WFS_MIN(ret, 0);
		wfs_content_unref(c);
	}
	world_did(w, ret, "read", "a tensor");
	if (world_did(w, wfs_model_shape(m, i, &shape), "shape", "of a tensor"))
		free(shape);
	world_did(w, wfs_model_digest(m, i, digest), "digest", "of a tensor");
}

void world_look_at_model(struct world *w)
{
	const struct wfs_cut *cut;
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_model *m;
	uint64_t dir = 0;

	if (!world_is_there(w, "m") || !world_did(w, model_dir(w, &dir), "look up", "m") ||
		!world_did(w, wfs_model_get(w->store, dir, NULL, &m), "read", "the model"))
		return;
	for (size_t i = 0; i < m->n; i++)
		look_at_tensor(w, m, i);
	if (m->n)
		world_did(w, wfs_model_cut(m, 80000, &cut, &err), "cut", err.text);
	wfs_model_unref(m);
	wfs_model_tidy(w->store);
}

void world_remove_tensor(struct world *w, const char *tensor)
{
	struct wfs_gone gone = { .inos = NULL };
	struct wfs_model_name name = { .tensor = tensor, .tensor_len = strlen(tensor) };
	struct name *n = tensor_of(w, tensor);

	if (!w->store || world_now(n) == ABSENT || !world_did(w, model_dir(w, &name.dir), "look up", "m"))
		return;
	if (world_did(w, busy_or(w, wfs_model_remove(w->store, &name, &gone, NULL)), "remove", n->name))
		world_set(n, ABSENT);
	drop_gone(w, &gone);
}

void world_settle(struct world *w)
{
	struct wfs_gone gone = { .inos = NULL };
	struct wfs_err err = WFS_ERR_INIT;
	uint64_t dir = 0;

	if (!world_is_there(w, "m") || !world_did(w, model_dir(w, &dir), "look up", "m"))
		return;
	world_did(w, busy_or(w, wfs_model_settle(w->store, dir, &gone, &err)), "settle", err.text);
	drop_gone(w, &gone);
}

