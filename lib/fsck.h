/*
 * fsck.h - are all invariants of the schema and of the data files true? And making them so.
 *
 * wfs_fsck looks only; it changes nothing. On a store that is in use it sees one
 * committed state of the database; the data files of dirty inodes are then
 * not looked into. wfs_fsck_repair needs the store for itself.
 */
#ifndef WFS_FSCK_H
#define WFS_FSCK_H

#include "lib/base.h"
#include "lib/err.h"
#include "lib/store.h"

/* One thing that is wrong; of a repair also what it did, or would do, about it. */
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

struct wfs_fsck_repair {
	bool dry_run; /* change nothing, say what would be done */
	void (*found)(void *ctx, const struct wfs_fsck_finding *finding);
	void (*done)(void *ctx, const struct wfs_fsck_finding *done); /* kind may be the reason of a damaged file */
	void (*left)(void *ctx, const struct wfs_fsck_finding *finding); /* could not be repaired */
	void *ctx;
};

struct wfs_fsck_repaired {
	struct wfs_fsck_summary before;
	uint64_t actions;
	uint64_t left;   /* findings afterwards; of a dry run those before */
	char kept[40];   /* directory in the store with the database as it was; "" if nothing was done */
};

/*
 * Check the store at `path` and repair what is found. Loses nothing: the database as
 * it was stays in STORE/before-repair-DATE, beside whatever was in data/ and was no
 * data file; what has no place any more gets a name in the directory lost+found of
 * the mount's root, and files whose bytes are gone say so (verdict 5, EIO). The new database replaces the
 * old one in one step, at the end: a repair that is stopped has changed nothing.
 *
 * 0 with *ret; -EBUSY store-locked where somebody has the store open for writing; -ENOSPC
 * where there is no room for two more copies of the database; -errno with *err as wfs_fsck.
 */
int wfs_fsck_repair(const char *path, const struct wfs_fsck_options *options,
	const struct wfs_fsck_repair *repair, struct wfs_fsck_repaired *ret, struct wfs_err *err);

#endif
