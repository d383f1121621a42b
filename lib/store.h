/*
 * store.h - a store as a whole: make, open, lock, close, make durable, count.
 *
 * A store is a directory:
 *   weightfs.db   SQLite, WAL; lib/schema.sql is its specification
 *   data/xx/ID    data files
 *   lock          flock'ed by the process that may write; holds its pid as text, and "ending" when it is
 *   reserve       on a disk that gets full: space that removals may use (lib/reserve.h)
 *
 * wfs_store_open(…, WFS_STORE_WRITE) takes the lock, recovers what an unclean
 * stop left behind (lib/recover.h) and may be called once for a store in a
 * process. WFS_STORE_READ takes no lock, changes nothing and works beside a
 * writer: every call then sees one committed state of the database.
 *
 * All functions may be called from any thread once open has returned.
 */
#ifndef WFS_STORE_H
#define WFS_STORE_H

#include "lib/base.h"
#include "lib/err.h"

struct wfs_store;

enum wfs_store_mode {
	WFS_STORE_READ,  /* look only, whoever else has it open */
	WFS_STORE_HOLD,  /* look only, and keep writers away meanwhile: a mount on read-only media */
	WFS_STORE_WRITE, /* the one writer */
};

/* How the gate treats .safetensors files; DESIGN §4. */
enum wfs_validate {
	WFS_VALIDATE_ON,     /* wrong is refused at close; wrong and incomplete at rename */
	WFS_VALIDATE_STRICT, /* incomplete is refused at close, too */
	WFS_VALIDATE_OFF,    /* only reported */
};

struct wfs_store_options {
	enum wfs_store_mode mode;
	bool create;            /* WRITE: make the store if `path` is missing or an empty directory */
	enum wfs_validate validate;
	bool has_many_users;    /* others than the mount's owner look at it: lib/follow.c */
	bool verbose;           /* also log what is sealed, shared and given back */
	uint64_t max_shard_size; /* bytes: lib/model_write.h; 0: WFS_DEFAULT_SHARD_SIZE */
	uint64_t max_size;      /* bytes of disk blocks that the store may take; 0: no limit. lib/quota.h */
	unsigned digest_bits;   /* 0: all 128; fewer only in tests of collisions */
	/* Where the store says what a person should know; NULL: nowhere. Called
	 * from any thread, never with a lock of the store held. */
	void (*log)(void *ctx, const char *line);
	void *log_ctx;
};

/*
 * Open the store at `path`. *ret is the caller's until wfs_store_close.
 * Errors, each with a reason in *err:
 *   -ENOENT   store-missing        no such directory (and !create)
 *   -ENOTDIR  not-a-directory
 *   -ENOTEMPTY not-a-store         a directory with other things in it, or without weightfs.db
 *   -EINVAL   not-a-store          weightfs.db is not a database of weightfs
 *   -EPROTONOSUPPORT store-version written by a version that this one does not know
 *   -EBUSY    store-locked         another process has it open for writing; its pid is in the text
 *   -EUCLEAN  store-damaged        the database is corrupt; says to run weightfs fsck
 *   other     io                   a system call failed
 */
int wfs_store_open(const char *path, const struct wfs_store_options *options,
	struct wfs_store **ret, struct wfs_err *err) WFS_WARN_UNUSED;

/*
 * Give back what is dead, make everything durable and mark the store clean
 * (WRITE), then free it. No file of it may be in use. Returns 0, or the first
 * error met; the store is freed in any case and recovers at the next open.
 */
int wfs_store_close(struct wfs_store *store);

/*
 * Wait until every transaction that was committed before this call would survive a
 * power cut, and with it the bytes that it needs: those of tensors that were put
 * first (lib/flush.h). -EIO where the disk failed: everything that would change the store then fails
 * with EIO until it is opened anew. A data file whose flush fails is no error here: its file is
 * reported, with reason sync-failed (docs/decisions/0020). Blocks on the disk, holds no lock
 * that others wait for.
 */
int wfs_store_sync(struct wfs_store *store);

/*
 * wfs_store_sync, and if the database's log has grown past `min_pages` pages, move
 * it into the database file. For a thread of the background.
 */
int wfs_store_checkpoint(struct wfs_store *store, int min_pages);

/*
 * The log is moved when it has this many pages (8 MiB): the reserve (lib/reserve.h)
 * must be able to hold what the database then grows by.
 */
#define WFS_STORE_LOG_PAGES 2048

/* Pages in the database's log that are not in the database file yet. */
int wfs_store_log_pages(struct wfs_store *store);

/* How many transactions were committed; where it stays the same, the store is quiet. */
uint64_t wfs_store_commits(struct wfs_store *store);

/*
 * For a quiet store: give back pages of the database that nothing needs any more,
 * and empty its log. 1: call again, there is more; 0: done; -errno.
 */
int wfs_store_tidy(struct wfs_store *store);

/* Where the database's lock is, for who tells what a thread waits for. */
uint64_t wfs_store_lock_address(const struct wfs_store *store);

/* The absolute path of the store. Borrowed. */
const char *wfs_store_path(const struct wfs_store *store);

/*
 * From now on programs may have data files open and mapped themselves
 * (wfs_file_pin): who writes, punches or reuses one asks the kernel first.
 */
void wfs_store_use_directly(struct wfs_store *store);

/*
 * Leave a word in the store for other processes (`weightfs status`), and read it
 * there: *ret is to be freed, NULL if there is none. A store that is only read
 * takes none. 0 or -errno.
 */
#define WFS_NOTE_PASSTHROUGH "passthrough" /* of the last mount: "on", or why not */
#define WFS_NOTE_BACKUP "backup_ns" /* of a backup that nobody has mounted to write: when it was made */

int wfs_store_note(struct wfs_store *store, const char *key, const char *text);
int wfs_store_read_note(struct wfs_store *store, const char *key, char **ret);
/* Take it away. A store that does not have it is not written. */
int wfs_store_drop_note(struct wfs_store *store, const char *key);

/* Was it opened to look only? */
bool wfs_store_is_read_only(const struct wfs_store *store);

/*
 * See whether the store's directory and database are still there. Where they were
 * removed under us, this is logged once, and from then on everything that would
 * change the store fails with EIO: nobody could ever read it again. True: there.
 */
bool wfs_store_check_place(struct wfs_store *store);
/* Has wfs_store_check_place found it gone? */
bool wfs_store_is_lost(const struct wfs_store *store);

/* Numbers of a store, each from one committed state. */
struct wfs_store_stats {
	uint64_t files;         /* regular inodes that have a name */
	uint64_t directories;   /* the root included */
	uint64_t dirty;         /* regular files that are not sealed yet */
	uint64_t sealed;
	uint64_t incomplete;    /* by the gate's last verdict */
	uint64_t wrong;
	uint64_t damaged;       /* files of which bytes are lost, or not what was stored */
	uint64_t damaged_objects; /* with a mark: lib/damage.h */
	uint64_t warned;        /* valid, but the README of the format is stricter */
	uint64_t logical_bytes; /* sizes of all names of regular files added up: what `cp -r` to another disk would write */
	uint64_t stored_bytes;  /* bytes of live objects and dirty files: what is kept once */
	uint64_t dirty_bytes;   /* of these, in dirty files */
	uint64_t pending_bytes; /* waits to be given back, at most: contents without a file, dead ranges of data files */
	uint64_t held_bytes;    /* dead ranges of data files on a disk that cannot punch holes */
	uint64_t shared_bytes;  /* of whole copies: in disk blocks that other data files have, too */
	uint64_t copied_bytes;  /* of whole copies: stored twice, so that a file is whole */
	uint64_t disk_bytes;    /* disk blocks of data files and database; what is shared counts once */
	uint64_t objects;
	uint64_t manifests;
	uint64_t data_files;    /* that exist on the disk */
	uint32_t format_version;
};

/* Cost is linear in the number of inodes and data files. 0 or -errno. */
int wfs_store_stats(struct wfs_store *store, struct wfs_store_stats *ret, struct wfs_err *err);

/* One file that a person should know about. */
struct wfs_store_report {
	const char *path;    /* from the root of the store, "/a/b"; one of its names; borrowed */
	uint64_t ino;
	uint64_t size;       /* bytes */
	const char *state;   /* "dirty" or "sealed" */
	const char *verdict; /* "none", "valid", "opaque", "incomplete", "wrong", "damaged" */
	const char *reason;  /* stable name, or NULL */
	const char *detail;  /* a sentence, or NULL */
};

/*
 * Call `fn` for every dirty file and every file with a reason (incomplete,
 * wrong, damaged, or valid with a warning), in order of inode. A return other
 * than 0 from `fn` ends the walk and is returned.
 */
int wfs_store_each_report(struct wfs_store *store,
	int (*fn)(void *ctx, const struct wfs_store_report *report), void *ctx,
	struct wfs_err *err);

/*
 * For a writer that has nobody left to serve: whoever opens the store from now
 * on waits for its end instead of being refused.
 */
void wfs_store_say_ending(struct wfs_store *s);

/*
 * Did the process that has the store say that the disk failed to keep the database's log, so that
 * it changes nothing any more (docs/decisions/0020)?
 */
bool wfs_store_has_failed(const char *path);

/* True if a process (maybe this one) has the store at `path` open for writing; *ret_pid 0 if unknown. */
bool wfs_store_is_locked(const char *path, int *ret_pid);
/* False while a process that lives has it open for writing; one that was killed may still hold its lock. */
bool wfs_store_is_left(const char *path);
/* Did the process that has the store, or had it last, say that it is ending (wfs_store_say_ending)? */
bool wfs_store_is_ending(const char *path);

#endif
