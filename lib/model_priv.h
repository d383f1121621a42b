/* model_priv.h - between lib/model.c, model_view.c, model_put.c and model_settle.c. */
#ifndef WFS_MODEL_PRIV_H
#define WFS_MODEL_PRIV_H

#include "lib/model_write.h"
#include "lib/store_priv.h"

/* ---- model_view.c ---- */

void wfs_cuts_free(struct wfs_cut *cuts); /* a list; NULL is allowed */

/* Which object of its shard's manifest tensor i is: the header is the first, and what is empty has
 * none. */
uint64_t wfs_model_place(const struct wfs_model *m, size_t i);

/* The bytes before the tensor's in its file; *ret is the caller's (free). -EOPNOTSUPP as
 * wfs_model_tensor_file. */
int wfs_model_tensor_header(const struct wfs_model *m, size_t i, enum wfs_tensor_form form,
	uint8_t **ret, size_t *ret_len);

/* ---- model_put.c; within a transaction ---- */

int wfs_gone_add(struct wfs_gone *gone, uint64_t ino);

/* One name fewer; it is added to `gone` if that was the last. */
int wfs_model_unlink_inode(struct wfs_store *s, uint64_t ino, struct wfs_gone *gone);

/* The object of these bytes in the database, or of equal bytes anywhere. */
int wfs_model_insert_bytes(struct wfs_store *s, const void *bytes, size_t len, uint64_t *ret);

/* A sealed regular file of these objects, `size` bytes in all, with mode and owner of `like`. */
int wfs_model_make_inode(struct wfs_store *s, const struct wfs_attr *like, unsigned links,
	const uint64_t *ids, size_t n, uint64_t size, uint64_t *ret);

#endif
