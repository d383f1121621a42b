/*
 * model.h - a model directory's weights as one list of tensors, whatever shards they are in.
 *
 * A model is what stands in the shards of a directory at one moment: names, dtypes,
 * shapes and places of its tensors, read from the shards' headers. It is counted and
 * does not change; who holds one goes on with it when the directory has another by now.
 * Which files are its shards:
 *
 *     base      of "model", "diffusion_pytorch_model", "adapter_model" the first that
 *               the directory has, or else the only one that there is (lib/shard_name.h)
 *     variant   as asked for ("fp16"), or none
 *     with an index (BASE.safetensors.index.json): those that its weight_map names
 *     and that are there, in the order of their names; else every file of that base and variant
 *
 * Shards that safetensors would not load, or that are not complete yet, and an index that
 * is none, are left out, and `left_out` says so. Of a name that is in two shards the one counts
 * that the index names, else the first.
 *
 * Any thread. No lock is held across the reading of headers; a dirty shard is sealed first.
 */
#ifndef WFS_MODEL_H
#define WFS_MODEL_H

#include <pthread.h>
#include <stdatomic.h>

#include "lib/base.h"
#include "lib/content.h"
#include "lib/err.h"
#include "lib/name.h"
#include "lib/safetensors.h"
#include "lib/shard_index.h"

struct wfs_model_shard {
	char *name; /* of the file */
	struct wfs_attr attr;
	struct wfs_content *content;
	uint8_t *header; /* what st points into */
	struct wfs_safetensors st;
	uint64_t data_at; /* first byte of the data in the file */
	bool has_empty;	  /* a tensor without bytes is among them */
};

struct wfs_model_tensor {
	uint32_t shard; /* number in shards[] */
	uint32_t place; /* number in its st.tensors[] */
};

struct wfs_model {
	atomic_uint refs;
	struct wfs_store *store;
	uint64_t serial;  /* the same for the same state of the directory's shards, and of no other */
	struct wfs_attr attr; /* mode and owner of what is put together from all shards */
	uint64_t dir;	 /* inode of the directory */
	char *variant;	 /* NULL: none */
	char *base;	 /* "model" where there is no shard */
	struct wfs_model_shard *shards;
	size_t n_shards;
	struct wfs_model_tensor
		*tensors; /* in file order: shard by shard, in each as its bytes stand */
	size_t n;
	uint32_t *by_name; /* numbers in tensors[], in order of name (bytewise) */
	bool has_index;
	struct wfs_shard_index index; /* with has_index */
	char left_out[240];	      /* why a shard was left out; "" if none was */
	/* what was looked at, to see whether it is still so: lib/model.c */
	struct wfs_model_file *files;
	size_t n_files;
	unsigned looks;  /* while it is read, at files being written: lib/model_seal.c */
	bool may_change; /* a shard was still dirty: somebody writes it, or it cannot be sealed */
	pthread_mutex_t cut_lock;
	struct wfs_cut *cuts; /* under cut_lock */
};

/*
 * The model of a directory as it is now, with a reference; a directory without
 * shards has one without tensors. One that was read before is used again while nothing
 * has changed. -ENOENT, -ENOTDIR; other -errno: it could not be read.
 */
int wfs_model_get(struct wfs_store *s, uint64_t dir, const char *variant, struct wfs_model **ret);
/*
 * The model of this serial, with a reference, if it is kept: also one that has been replaced less
 * than a second ago, for who has found something in it and opens it now. 1, 0.
 */
int wfs_model_get_serial(struct wfs_store *s, uint64_t serial, struct wfs_model **ret);
struct wfs_model *wfs_model_ref(struct wfs_model *m);
void wfs_model_unref(struct wfs_model *m); /* NULL is allowed */

/*
 * Drop what is kept of models that are not so any more, or that nobody has asked for
 * lately, so that it keeps no space from being given back. For the background.
 */
void wfs_model_tidy(struct wfs_store *s);

/* The number in tensors[] of the tensor of this name: 1 and *ret, or 0. */
int wfs_model_find(const struct wfs_model *m, const char *name, size_t len, size_t *ret);

const struct wfs_safetensors_tensor *wfs_model_tensor(const struct wfs_model *m, size_t i);
const struct wfs_model_shard *wfs_model_shard_of(const struct wfs_model *m, size_t i);

/* Its shape; the caller frees *ret (NULL for a scalar). -ENOMEM. */
int wfs_model_shape(const struct wfs_model *m, size_t i, uint64_t **ret);

/*
 * The digest of its bytes as text ("xxh3:…"), from the database. -ENODATA where it has no
 * object of its own: no bytes, or its shard is dirty.
 */
int wfs_model_digest(const struct wfs_model *m, size_t i, char ret[40]);

/* ---- files that are not stored ---- */

enum wfs_tensor_form {
	WFS_TENSOR_NPY,		/* where NumPy has the dtype; else -EOPNOTSUPP */
	WFS_TENSOR_SAFETENSORS, /* a file with this tensor alone, under its name */
};

/* The content of a tensor's file: a header, and the tensor's bytes where they are. */
int wfs_model_tensor_file(
	const struct wfs_model *m, size_t i, enum wfs_tensor_form form, struct wfs_content **ret);

/* One file of a model that is cut differently. */
struct wfs_cut_file {
	char *name;
	struct wfs_content *content;
	const struct wfs_attr
		*attr; /* of the first shard that has tensors in it; borrowed from the model */
};

/* A model cut into shards of at most so many bytes: its shards, and its index where there are
 * several. */
struct wfs_cut {
	uint64_t max_shard_size;
	struct wfs_cut_file *files; /* shards in order, then the index */
	size_t n;
	struct wfs_cut *next;
};

/*
 * The plan is that of lib/shard_plan.h, in file order. Metadata of the shards' headers is
 * that of the first shard that has a key. Other members of the index's metadata stay as
 * they are; total_parameters, where the index has none, counts the elements. *ret is the
 * model's, which keeps it for the next time. -ENODATA: the model has no tensors; -EINVAL,
 * -EFBIG with a reason: a header would be too large; -EBUSY with a reason: too many cuts are kept.
 */
int wfs_model_cut(struct wfs_model *m, uint64_t max_shard_size, const struct wfs_cut **ret,
	struct wfs_err *err);

/* The file of this name, or NULL. */
const struct wfs_cut_file *wfs_cut_find(const struct wfs_cut *cut, const char *name);

#endif
