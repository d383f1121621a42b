/*
 * fsck_fix.h - private to lib/fsck_*.c: one repair, and the means that its parts share.
 *
 * A repair works on a copy of the database (run->db, which may be written), in
 * one transaction a round. What it does outside of the database is done so that the store
 * is as good as before for whoever stops in between: data files are linked, not renamed, and
 * what does not belong into data/ is moved to the directory `kept`, beside the
 * database as it was. In a dry run nothing outside of the copy is touched.
 *
 * A part names what it does (wfs_fix_say) and does it. Nothing that holds bytes
 * is deleted: what has no place any more gets a name in the directory lost+found
 * of the mount's root (fsck_lost.c).
 *
 * Counts of references are made anew at the end; the parts need not keep them.
 */
#ifndef WFS_FSCK_FIX_H
#define WFS_FSCK_FIX_H

#include <stdio.h>

#include "lib/digest.h"
#include "lib/fsck_check.h"

#define WFS_FIX_MAX_ID ((INT64_C(1) << 48) - (1 << 20)) /* WFS_FSCK_MAX_ID */

struct wfs_fix {
	struct wfs_fsck_run *run;
	int kept_fd;         /* of the directory for what is set aside; -1 in a dry run */
	bool dry_run;
	bool settled;        /* nothing that the driver would go on with is under way */
	bool rows_were_lost; /* of objects: what lies in packs may be theirs */
	void (*fn)(void *ctx, const struct wfs_fsck_finding *done);
	void *ctx;
	uint64_t actions;
	int64_t now_ns;
	int64_t first_new;   /* in a dry run: data files from here on were not really made; 0: none */
	int64_t lost_dir;    /* inode of lost+found; 0: not needed yet */
	FILE *notes;         /* what the file in lost+found will say */
	bool has_notes;      /* something was put there, or cannot be read any more */
};

/* One thing that was done (or, in a dry run, would be). */
void wfs_fix_say(struct wfs_fix *fix, const char *kind, const char *where, const char *text);
void wfs_fix_sayf(struct wfs_fix *fix, const char *kind, const char *noun, int64_t id,
	const char *fmt, ...) WFS_PRINTF(5, 6);

/* A fault of the environment or of the copy: -errno, with the reason. */
int wfs_fix_failed(struct wfs_fix *fix, const char *what);

/* A directory for the store's owner alone; one that is there already is fine. 0 or -errno. */
int wfs_fix_mkdir(int dir_fd, const char *name);

/*
 * Statements. A letter of `types` for each parameter: 'i' int64_t, 'o' the same
 * with NULL for 0, 'b' const void * and size_t, 't' const char *. 0 or -errno. Number: 1 with the first column of
 * the first row, 0 where there is no row or it has NULL.
 */
int wfs_fix_exec(struct wfs_fix *fix, const char *sql, const char *types, ...);
int wfs_fix_number(struct wfs_fix *fix, const char *sql, int64_t *ret, const char *types, ...);
int64_t wfs_fix_insert_id(struct wfs_fix *fix);

/* The first three columns of all rows of a query, which may then be changed. */
struct wfs_fix_row {
	int64_t a, b, c; /* 0 for NULL and for columns that there are not */
};

struct wfs_fix_rows {
	struct wfs_fix_row *list; /* the caller frees */
	size_t n;
};

int wfs_fix_rows(struct wfs_fix *fix, const char *sql, struct wfs_fix_rows *ret, const char *types,
	...);

/*
 * A repair that is one query and one statement: where the query has rows, each is
 * told (as in struct wfs_fsck_check), and then the statement runs once.
 */
struct wfs_fix_step {
	const char *kind;
	enum wfs_fsck_when when;
	const char *sql;
	const char *where;
	const char *text;
	const char *change; /* NULL: the query is enough (INSERT … RETURNING) */
};

int wfs_fix_table(struct wfs_fix *fix, const struct wfs_fix_step *steps, size_t n);

/*
 * The same for a column whose values are of a wrong type or range: `good` and `value`
 * are SQL on the row.
 */
struct wfs_fix_column {
	const char *table, *id, *column, *good, *value;
};

int wfs_fix_columns(struct wfs_fix *fix, const struct wfs_fix_column *columns, size_t n);

/* ---- data files on the disk ---- */

/* The next id for a data file: above all that were ever given out, and all that are on the disk. */
int wfs_fix_new_data_file(struct wfs_fix *fix, int64_t state, int64_t *ret_id);

/* Size of a regular data file; -1 where there is none. */
int64_t wfs_fix_file_size(struct wfs_fix *fix, int64_t id);
/* Does it hold anything: any block of the disk? */
bool wfs_fix_holds_bytes(struct wfs_fix *fix, int64_t id);
int wfs_fix_open(struct wfs_fix *fix, int64_t id);

/* A new data file in `state` with a copy of these bytes of another; length -1: all. */
int wfs_fix_copy(struct wfs_fix *fix, int64_t from, int64_t offset, int64_t length, int64_t state,
	int64_t *ret_id);

/* Digest of a range of a data file: 1, or 0 where it is not there. */
int wfs_fix_hash(struct wfs_fix *fix, int64_t id, int64_t offset, int64_t length,
	struct wfs_digest *ret);

/* ---- lost+found (fsck_lost.c) ---- */

#define WFS_LOST_NAME 256

/* `name`, or it with ~1, ~2, …: what is free in `parent`, and legal. */
int wfs_lost_free_name(struct wfs_fix *fix, int64_t parent, const void *name, size_t len,
	char ret[WFS_LOST_NAME], size_t *ret_len);
/* Name an inode there; ret_name (WFS_LOST_NAME): how, or NULL. */
int wfs_lost_link(struct wfs_fix *fix, int64_t ino, const void *name, size_t len, char *ret_name);
int wfs_lost_link_inode(struct wfs_fix *fix, const char *kind, int64_t ino);
/* Move an entry there that is elsewhere. */
int wfs_lost_move(struct wfs_fix *fix, int64_t dirent, const void *name, size_t len);
/* A new file with this content; text says why. */
int wfs_lost_manifest(struct wfs_fix *fix, const char *kind, int64_t manifest, const char *name,
	const char *text);
int wfs_lost_object(struct wfs_fix *fix, const char *kind, int64_t object, const char *name,
	const char *text);
int wfs_lost_data_file(struct wfs_fix *fix, const char *kind, int64_t id, const char *name,
	const char *text);
/* A new small file with these bytes. */
int wfs_lost_bytes(struct wfs_fix *fix, const char *kind, const char *name, const void *bytes,
	size_t len, const char *text);
/* The file that says what was done. */
int wfs_lost_write_notes(struct wfs_fix *fix);

/* ---- damage ---- */

/* The files of a manifest cannot be read any more: verdict 5, and why. */
int wfs_fix_damage(struct wfs_fix *fix, int64_t manifest, const char *reason, const char *detail);
int wfs_fix_damage_inode(struct wfs_fix *fix, int64_t ino, const char *reason, const char *detail);

/*
 * The row of a manifest from its list: size, number, digest. Where another has the same list,
 * that is taken, and *id is it.
 */
int wfs_fix_settle_list(struct wfs_fix *fix, int64_t *id);

/* ---- the parts, in the order of a round; 0 or -errno ---- */

int wfs_fix_types(struct wfs_fix *fix);     /* columns, ids, sequences, table meta */
int wfs_fix_modes(struct wfs_fix *fix);     /* what kind of file an inode is */
int wfs_fix_objects(struct wfs_fix *fix);   /* rows of objects and data files that others name */
int wfs_fix_manifests(struct wfs_fix *fix); /* lists that do not add up */
int wfs_fix_inodes(struct wfs_fix *fix);    /* what an inode says of its content */
int wfs_fix_strays(struct wfs_fix *fix);    /* what is in data/ and should not be */
int wfs_fix_unnamed(struct wfs_fix *fix);   /* content that nothing names */
int wfs_fix_bytes(struct wfs_fix *fix);     /* objects whose bytes are not there */
int wfs_fix_names(struct wfs_fix *fix);     /* entries, directories, attributes */
int wfs_fix_counts(struct wfs_fix *fix);    /* references and links */

/* Make `to` (a new file in STORE) a database with every row of `from` that can be read. */
int wfs_fsck_salvage(struct wfs_fix *fix, const char *from, const char *to);

#endif
