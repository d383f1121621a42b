/*
 * verify.h - read what is stored, and compare it with the digests it is named by.
 *
 * Objects in data files are read in the order of the disk, by several threads, past the page
 * cache where the disk lets one (O_DIRECT): what the disk has is looked at, and nothing that programs
 * need is pushed out of memory. Elsewhere pages that were not cached are dropped again.
 * Objects in the database and whole copies come after that. Each is read once.
 *
 * It takes no lock and changes nothing, so it works beside a mount. What is found is
 * looked up again in the newest state of the database before it is said: an object that was
 * removed, moved or written while it was read is no damage. Objects that are made while this
 * runs are not looked at.
 */
#ifndef WFS_VERIFY_H
#define WFS_VERIFY_H

#include <stdatomic.h>

#include "lib/base.h"
#include "lib/damage.h"
#include "lib/digest.h"
#include "lib/err.h"
#include "lib/store.h"

struct wfs_verify_options {
	const uint64_t *inos;      /* only what these inodes need (n_inos of them); NULL: everything */
	size_t n_inos;
	uint64_t rate;             /* bytes for each second, at most; 0: as fast as it goes */
	unsigned threads;          /* 0: WFS_VERIFY_THREADS */
	const atomic_bool *stop;   /* when it becomes true, this ends with -EINTR; NULL: never */
	/* Called by the caller's thread about ten times a second; NULL: never. */
	void (*tick)(void *ctx, uint64_t done, uint64_t total);
	void *tick_ctx;
};

#define WFS_VERIFY_THREADS 2

/* An object, or a whole copy, that is not as it should be; or an object with a mark that is right again. */
struct wfs_verify_bad {
	uint64_t object;
	struct wfs_digest digest;
	uint64_t length;
	uint64_t data_file, offset;    /* where that was read; 0: in the database */
	enum wfs_damage_reason reason; /* NONE: it is right again */
	uint64_t good_file, good_at;   /* a whole copy where its bytes are right; good_file 0: none */
	uint64_t copy_of;              /* the manifest whose whole copy this is, at that offset; 0: it is the object itself */
};

struct wfs_verify_summary {
	uint64_t objects, bytes; /* read, copies included */
	uint64_t copies;         /* whole copies */
	uint64_t dirty;          /* files that were asked for and are not sealed: there is no digest yet */
	uint64_t bad;            /* of the list, without those that are right again */
};

/*
 * *ret (free) lists what was found, by object. 0; -EINTR: stopped, and the list is what was
 * found until then; other -errno with *err: could not be done. The list may be there also then.
 */
int wfs_verify(struct wfs_store *s, const struct wfs_verify_options *options,
	struct wfs_verify_bad **ret, size_t *ret_n, struct wfs_verify_summary *summary,
	struct wfs_err *err);

#endif
