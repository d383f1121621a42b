/* seal_priv.h - what lib/seal.c lends to lib/seal_small.c. */
#ifndef WFS_SEAL_PRIV_H
#define WFS_SEAL_PRIV_H

#include "lib/seal_plan.h"

/* What becomes of the staging file. */
enum wfs_fate {
	WFS_FATE_WHOLE, /* all of it is new: it is the pack as it stands */
	WFS_FATE_COPY,  /* the same, but some is not new: the whole copy of its manifest */
	WFS_FATE_PART,  /* the pack of some; the rest is punched out */
	WFS_FATE_DB,    /* nothing is left but what the database takes */
};

/* 1: sealing is the caller's now, and *ret the staging content with a reference; 0: nothing to seal; -EBUSY. */
int wfs_seal_begin(struct wfs_file *f, struct wfs_content **ret);
/* The end of what began, done or not; takes the reference. */
void wfs_seal_end(struct wfs_file *f, struct wfs_content *staging);

/*
 * Can the staging file be sealed now, and how long is it? -EFBIG, -ETXTBSY, -ENOSPC as
 * wfs_seal says. Nobody can write it from here on without the seal being told.
 */
int wfs_seal_check(struct wfs_file *f, struct wfs_content *staging, uint64_t *ret_size);

/* Under f->lock: nobody came between the hashing and the transaction. */
bool wfs_seal_may_commit(const struct wfs_file *f, const struct wfs_content *staging);

/*
 * In a transaction: objects, manifest, inode, data file; the sealed content, or `plan`
 * NULL for an empty one. `ids`: room for the ids of the plan's pieces. -ESTALE: what the
 * plan found is not so any more.
 */
int wfs_seal_record(struct wfs_plan *plan, enum wfs_fate fate, uint64_t *ids,
	struct wfs_content **ret);
int wfs_seal_record_empty(struct wfs_file *f, struct wfs_content *staging,
	struct wfs_content **ret);

/* Where the store wants to hear of it. */
void wfs_seal_log(const struct wfs_plan *p, enum wfs_fate fate);

/* After the commit of a plan that heals; no lock is held. */
void wfs_seal_healed(struct wfs_store *s);

#endif
