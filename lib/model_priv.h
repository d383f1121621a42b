/* model_priv.h - between the files lib/model*.c. */
#ifndef WFS_MODEL_PRIV_H
#define WFS_MODEL_PRIV_H

#include "lib/model_write.h"
#include "lib/shard_name.h"
#include "lib/store_priv.h"

/* ---- model_seal.c ---- */

/*
 * Seal a file. Who seals it already is waited for; who may write it for a moment, and once only: he may be about
 * to go. *looks counts this waiting over several calls; 0 at first. 0: sealed; 1: it is still written; -errno.
 */
int wfs_model_seal(struct wfs_store *s, uint64_t ino, unsigned *looks);

/* ---- model_scan.c: what there is in a directory ---- */

/* A file that may be one of the model's: what it was when it was looked at. */
struct wfs_model_file {
	struct wfs_shard_name parsed;
	char *name;
	struct wfs_attr attr;
};

struct wfs_scan {
	struct wfs_store *store;
	uint64_t dir;
	struct wfs_model_file *files;
	size_t n, room;
	uint64_t last;
	size_t seen;
};

/* Of two names, bytewise. */
int wfs_compare_bytes(const char *a, size_t a_len, const char *b, size_t b_len);
/*
 * Files with names of shards and indexes of this variant; shards by number, the index last. A name that is
 * not usual has a variant only if a file without it, or an index, is there, too: its dots are its own.
 */
int wfs_scan_directory(
	struct wfs_store *s, uint64_t dir, const char *variant, struct wfs_scan *ret);
int wfs_scan_add(struct wfs_scan *scan, const char *name, const struct wfs_attr *attr,
	const struct wfs_shard_name *parsed);
/* The base that the model has (lib/model.h), or NULL: there are several, and none of them is usual.
 */
const char *wfs_scan_base(const struct wfs_scan *scan);
/* Those of other bases go; NULL: all. */
void wfs_scan_keep_base(struct wfs_scan *scan, const char *base);
void wfs_model_files_free(struct wfs_model_file *files, size_t n);

/* The next variant behind `after` (NULL: the first) that files of the directory have: 1 with *ret, to be freed; 0. */
int wfs_scan_next_variant(struct wfs_store *s, uint64_t dir, const char *after, char **ret);

/* ---- model_view.c ---- */

void wfs_cuts_free(struct wfs_cut *cuts); /* a list; NULL is allowed */

/* Which object of its shard's manifest tensor i is: the header is the first, and what is empty has
 * none. */
uint64_t wfs_model_place(const struct wfs_model *m, size_t i);

/* The bytes before the tensor's in its file; *ret is the caller's (free). -EOPNOTSUPP as
 * wfs_model_tensor_file. */
int wfs_model_tensor_header(const struct wfs_model *m, size_t i, enum wfs_tensor_form form,
	uint8_t **ret, size_t *ret_len);

/* ---- model_put.c ---- */

/* Held by who changes the rows of table tensor of this directory. */
static inline pthread_mutex_t *wfs_put_lock(struct wfs_store *s, uint64_t dir)
{
	return &s->put_locks[dir % WFS_PUT_LOCKS];
}

/* Within a transaction: */

int wfs_gone_add(struct wfs_gone *gone, uint64_t ino);

/* One name fewer; it is added to `gone` if that was the last. */
int wfs_model_unlink_inode(struct wfs_store *s, uint64_t ino, struct wfs_gone *gone);

/* The object of these bytes in the database, or of equal bytes anywhere. */
int wfs_model_insert_bytes(struct wfs_store *s, const void *bytes, size_t len, uint64_t *ret);

/* A sealed regular file of these objects, `size` bytes in all, with mode and owner of `like`. */
int wfs_model_make_inode(struct wfs_store *s, const struct wfs_attr *like, unsigned links,
	const uint64_t *ids, size_t n, uint64_t size, uint64_t *ret);

#endif
