/*
 * fsck.h - are all invariants of the schema and of the data files true?
 *
 * Looks only; it changes nothing. On a store that is in use it sees one
 * committed state of the database; the data files of dirty inodes are then
 * not looked into.
 */
#ifndef WFS_FSCK_H
#define WFS_FSCK_H

#include "lib/base.h"
#include "lib/err.h"
#include "lib/store.h"

/* One thing that is wrong. */
struct wfs_fsck_finding {
	const char *kind;   /* stable name, e.g. "object-refs", "nlink", "dirent-dangling" */
	const char *where;  /* the row or file, e.g. "object 12", "/a/b", "data/0a/000000000000000a" */
	const char *text;   /* a sentence: what is, what should be */
};

struct wfs_fsck_summary {
	uint64_t inodes, dirents, objects, manifests, data_files; /* looked at */
	uint64_t findings;
};

struct wfs_fsck_options {
	bool check_bytes; /* read every object and compare it with its digest */
};

/*
 * `path` is a store. Every finding goes to `fn`. 0 if the check ran to its end
 * (ret->findings says what it found); -errno with *err if it could not.
 */
int wfs_fsck(const char *path, const struct wfs_fsck_options *options,
	void (*fn)(void *ctx, const struct wfs_fsck_finding *finding), void *ctx,
	struct wfs_fsck_summary *ret, struct wfs_err *err);

#endif
