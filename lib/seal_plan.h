/*
 * seal_plan.h - private to the seal: the pieces of a file and what is known of
 * each. Order: wfs_plan_split → wfs_plan_hash → wfs_plan_match → wfs_plan_share →
 * lib/seal.c commits. Reads bytes and the database, and changes neither; share may
 * exchange blocks of the disk for others with the same bytes.
 */
#ifndef WFS_SEAL_PLAN_H
#define WFS_SEAL_PLAN_H

#include "lib/content.h"
#include "lib/digest.h"
#include "lib/file_priv.h"

#define WFS_PLAN_NONE SIZE_MAX

/* A piece becomes one object, or a reference to one. */
struct wfs_plan_piece {
	uint64_t offset;        /* in the file, and so in its staging file */
	uint64_t length;        /* bytes, > 0 */
	struct wfs_digest digest;
	uint64_t object;        /* the equal one that is there already, or 0 */
	uint64_t data_file;     /* where that lives, when it was found; 0: in the database */
	uint64_t place;         /* offset there */
	uint64_t heals;         /* the one with its digest has lost its bytes, and takes these; or 0 */
	int64_t last_compared;  /* highest ordinal that was compared and differs; -1: none */
	size_t same_as;         /* an equal piece before it in this file, or WFS_PLAN_NONE */
	size_t next;            /* private: chain of pieces with like digests */
};

struct wfs_plan {
	struct wfs_file *file;
	struct wfs_content *content; /* staging; a reference */
	uint64_t size;               /* bytes */
	size_t n;
	struct wfs_plan_piece *pieces; /* in file order, covering 0..size */
	uint8_t *buf, *buf2;           /* WFS_PLAN_BUFFER bytes each, or the size if that is less */
	uint64_t shared;               /* bytes in blocks of other extents, once share has said 1 */
};

#define WFS_PLAN_BUFFER ((size_t)1 << 20)

/* Where the file's objects begin and end. Takes a reference to `content`. Release in any case. */
int wfs_plan_split(struct wfs_plan *p, struct wfs_file *f, struct wfs_content *content,
	uint64_t size);
/* The digests. -EBUSY as soon as a writer comes. */
int wfs_plan_hash(struct wfs_plan *p);
/* Look each digest up and compare bytes. May be called again when what it found is gone. -EBUSY as above. */
int wfs_plan_match(struct wfs_plan *p);
/*
 * For a file with duplicates in it, which has a staging file of more than
 * WFS_SMALL_FILE: let these have the blocks of what they are equal to (lib/seal_share.c), where
 * the disk can. 1: done, and so little is stored twice that the file should stay whole; 0: it is not
 * to be had, the duplicates are to be punched out; -EBUSY.
 */
int wfs_plan_share(struct wfs_plan *p);
void wfs_plan_release(struct wfs_plan *p);

/* True if the piece is to be recorded as a new object. */
static inline bool wfs_plan_is_new(const struct wfs_plan_piece *piece)
{
	return piece->object == 0 && piece->same_as == WFS_PLAN_NONE;
}

/* Does it give an object its bytes back? */
static inline bool wfs_plan_heals(const struct wfs_plan *p)
{
	for (size_t i = 0; i < p->n; i++)
		if (p->pieces[i].heals)
			return true;
	return false;
}

static inline bool wfs_plan_must_stop(const struct wfs_plan *p)
{
	return atomic_load(&p->file->stop_seal);
}

#endif
