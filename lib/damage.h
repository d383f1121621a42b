/*
 * damage.h - objects whose bytes are known not to be what was stored (table damage).
 *
 * A mark is on an object. The place where it lives is a bad range of its data file
 * (lib/datafile.h), so that whoever reads it, by whatever file or view, gets EIO; a file
 * with such bytes is never opened directly. Objects in the database need no mark for
 * that: they are compared with their digest whenever they are loaded.
 *
 * A mark goes with its object, or when the object has other bytes: repaired
 * (lib/repair.h), saved anew (lib/seal.h), or read again and found right.
 *
 * Any thread; no lock may be held.
 */
#ifndef WFS_DAMAGE_H
#define WFS_DAMAGE_H

#include "lib/base.h"
#include "lib/store.h"

/* As in column `reason` of table damage. */
enum wfs_damage_reason {
	WFS_DAMAGE_NONE,    /* its bytes are right */
	WFS_DAMAGE_CHANGED, /* other bytes than those of its digest */
	WFS_DAMAGE_ERROR,   /* the disk cannot read them */
	WFS_DAMAGE_MISSING, /* the data file is gone or too short, or the row with the bytes */
};

/* "sound", "bytes-changed", "bytes-unreadable", "bytes-missing"; "bytes-lost" for another number. Static. */
const char *wfs_damage_reason_name(enum wfs_damage_reason reason);
/* The same as a part of a sentence. Static. */
const char *wfs_damage_reason_text(enum wfs_damage_reason reason);

/* What somebody has found, who read an object where it was. */
struct wfs_damage {
	uint64_t object;
	uint64_t data_file, offset; /* data_file 0: in the database */
	enum wfs_damage_reason reason;
	uint64_t good_file, good_at; /* a whole copy that has its bytes, read and found right; good_file 0: none is known */
};

/* Are there any marks, or may there be some that could not be read? Costs nothing. */
bool wfs_damage_is_any(const struct wfs_store *s);

/* Read the marks, when the store is opened and when objects have died or moved. 0 or -errno. */
int wfs_damage_load(struct wfs_store *s);

/*
 * Mark, or with reason NONE take the mark from, each object that still lives where it
 * was found; one that a whole copy has lives there from here on. *ret: for how many that changed
 * anything. 0, -EROFS or another -errno.
 */
int wfs_damage_set(struct wfs_store *s, const struct wfs_damage *list, size_t n, size_t *ret);

/*
 * Within a transaction: the object lives at (data_file, offset) from here on, or with data_file 0 in the
 * database, as these `length` bytes. They have its digest, and those in a data file are on the
 * disk. What it had died, and so its mark. -ESTALE: it is gone. wfs_damage_load and
 * wfs_damage_reload are to follow the commit.
 */
struct wfs_db;
int wfs_damage_replace(struct wfs_db *db, uint64_t object, uint64_t data_file, uint64_t offset,
	const void *bytes, uint64_t length);

/* The ids of all objects with a mark, in order; the caller frees *ret. */
int wfs_damage_list(struct wfs_store *s, uint64_t **ret, size_t *ret_n);

/*
 * The whole copy of a manifest has wrong bytes, while its objects live elsewhere or are judged by
 * themselves: the file is read from its objects from here on. 1: done; 0: it is not its whole copy any more.
 */
int wfs_damage_drop_copy(struct wfs_store *s, uint64_t manifest, uint64_t data_file);

/*
 * Reading [offset, +length) of this content gave EIO. What is not known to be damaged is looked at:
 * objects that the disk cannot read, or that are not there, are marked, and the log says so,
 * with file and tensor. For who answers a read.
 */
struct wfs_content;
void wfs_damage_read_failed(struct wfs_store *s, struct wfs_content *c, uint64_t offset,
	uint64_t length);

/* ---- who has it ---- */

/* What an object is in a file. */
struct wfs_damage_place {
	uint64_t object, manifest;
	uint64_t ino;
	const char *path;   /* one of the file's names, from the root of the store; borrowed */
	uint64_t at;        /* in the file */
	uint64_t length;    /* bytes */
	const char *part;   /* "header", "tensor", "array", "file", or "part" where the header cannot be read */
	const char *tensor; /* its name, tensor_len bytes; NULL: it is none */
	size_t tensor_len;
	uint64_t number;    /* of the tensor among those of the file that are not empty, from 0 */
	enum wfs_damage_reason reason; /* of its mark; NONE: it has none */
};

/*
 * Call `fn` for each place of each of these objects (ids in order) in each file, once for each
 * name of the file. A return other than 0 ends the walk and is returned. With n > 0
 * this looks at every manifest.
 */
int wfs_damage_each_place(struct wfs_store *s, const uint64_t *objects, size_t n,
	int (*fn)(void *ctx, const struct wfs_damage_place *place), void *ctx);

/*
 * What is wrong with the content of this inode, for a person, and the stable name of
 * the (first) reason. 1 with *ret (free), 0: nothing is known, -errno.
 */
int wfs_damage_text(struct wfs_store *s, uint64_t ino, const char **ret_reason, char **ret);

/* As wfs_damage_text, for every inode that has damaged content, in order. */
int wfs_damage_each_file(struct wfs_store *s,
	int (*fn)(void *ctx, uint64_t ino, const char *reason, const char *text), void *ctx);

/* Let files in use have their content from where it is now. */
void wfs_damage_reload(struct wfs_store *s);

#endif
