/*
 * model_settle.h - private to the settling of a model (lib/model_write.h): what it is about,
 * between lib/model_settle.c, which reads what waits and has it sealed, lib/model_plan.c, which
 * says what the shards are to be, and lib/model_shards.c, which writes them.
 */
#ifndef WFS_MODEL_SETTLE_H
#define WFS_MODEL_SETTLE_H

#include "lib/model_priv.h"
#include "lib/shard_name.h"

/* A tensor of the new shards. */
struct wfs_settle_part {
	char *name; /* owned */
	size_t name_len;
	enum wfs_dtype dtype;
	uint64_t *shape; /* owned */
	uint32_t ndim;
	uint64_t object;      /* 0: it has no bytes */
	uint64_t length;      /* bytes */
	uint32_t old;   /* the old shard that it is in, unless is_new */
	uint32_t shard;	      /* of the new ones */
	bool is_new;	      /* its bytes are not those that the old shard has under this name */
	struct wfs_attr from; /* is_new: of the file that it was put by */
};

/* A row of table tensor. */
struct wfs_settle_row {
	char *name;
	size_t name_len;
	uint64_t ino; /* 0: to be removed */
	char *dtype, *shape;
	uint64_t start, length;
	bool waits; /* its file is still written: the row stays */
	bool bad;   /* its file has other bytes than those that were put: the row goes, and changes
		       nothing */
};

struct wfs_settle_rows {
	struct wfs_settle_row *list;
	size_t n, room;
};

struct wfs_settle_shard {
	char name[WFS_SHARD_NAME_SIZE];
	struct wfs_attr like;		   /* mode and owner */
	const struct wfs_model_shard *old; /* the one that it goes on from, or NULL */
	bool is_same;			   /* nothing of it changes */
	size_t first, n;		   /* its tensors in order[] */
};

/* All of one settling. */
struct wfs_settling {
	struct wfs_store *store;
	struct wfs_model *m;
	struct wfs_settle_rows rows;
	struct wfs_settle_part *parts;
	size_t n;
	size_t *order; /* numbers of parts, by shard */
	struct wfs_settle_shard *shards;
	uint32_t n_shards;
	bool replan;
	uint64_t max;
	struct wfs_gone *gone;
	struct wfs_err *err;
};

/* Within a transaction: what waits for this directory and variant. */
int wfs_settle_rows(
	struct wfs_store *s, uint64_t dir, const char *variant, struct wfs_settle_rows *ret);
void wfs_settle_release_rows(struct wfs_settle_rows *rows);

/* A copy with a NUL behind it; NULL: out of memory. */
char *wfs_copy_bytes(const void *bytes, size_t len);

/*
 * Within a transaction: t->parts from the model and the rows, and t->shards, t->order. -EAGAIN:
 * a file was written again since it was sealed.
 */
int wfs_settle_plan(struct wfs_settling *t);

/* One transaction: plan, and write what is not the same. -EAGAIN: something has changed since it
 * was read. */
int wfs_settle_record(struct wfs_settling *t);

#endif
