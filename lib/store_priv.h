/*
 * store_priv.h - struct wfs_store, for lib/ only.
 *
 * Lock order (docs/locking.md): collect_lock → a file's lock → db.lock →
 * files_lock, flush_lock, datafiles.lock (the last three never together).
 */
#ifndef WFS_STORE_PRIV_H
#define WFS_STORE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "lib/base.h"
#include "lib/datafile.h"
#include "lib/db.h"
#include "lib/name.h"
#include "lib/spare.h"
#include "lib/store.h"
#include "lib/store_time.h"

#define WFS_FILE_BUCKETS 1024
#define WFS_PUT_LOCKS 16

/* Key in table meta: 1 if the disk that the store lies on did not punch a hole when it was last asked. */
#define WFS_META_CANNOT_PUNCH "cannot_punch"

/* inode.reason: a sync of the dirty file has failed, so that it may not be on the disk. Also in lib/query.h. */
#define WFS_REASON_SYNC_FAILED "sync-failed"

struct wfs_file;

struct wfs_store {
	/* constant after open */
	char *path; /* absolute */
	struct wfs_store_options options;
	int dir_fd;  /* STORE */
	int lock_fd; /* STORE/lock, flock'ed; -1 where READ */
	struct wfs_db db;
	struct wfs_datafiles datafiles;
	uint64_t share_block;     /* bytes of the unit in which the disk could share blocks */
	bool frees_extents_whole; /* btrfs: an extent is given back when nothing of it is used any more */

	/* under files_lock */
	pthread_mutex_t files_lock;
	struct wfs_file *files[WFS_FILE_BUCKETS]; /* in use, by inode number */

	/* Inodes that wfs_store_sync flushes: lib/flush.h. Under flush_lock. */
	pthread_mutex_t flush_lock;
	pthread_mutex_t flush_run_lock; /* held by the one thread that works on the list */
	uint64_t *flush;
	size_t n_flush, flush_room;

	struct wfs_pins *pins; /* lib/pin.c; constant */
	struct wfs_models *models; /* lib/model.c; constant */
	atomic_llong pending_tensors; /* rows of table tensor, or more: lib/model_write.h */
	pthread_mutex_t settle_lock;  /* held by the one thread that makes shards anew; above all others */
	pthread_mutex_t put_locks[WFS_PUT_LOCKS]; /* by directory: nothing is put there, see docs/locking.md */

	_Atomic uint64_t damaged; /* objects with a mark: lib/damage.h */
	atomic_bool damage_stale; /* marks could not be read since they were changed: what is in memory is older */

	pthread_mutex_t quota_lock; /* held by the one thread that counts blocks; db.lock is below it */
	_Atomic uint64_t quota_used; /* bytes of disk blocks, about; lib/quota.h */
	atomic_bool quota_said;

	pthread_mutex_t spare_lock; /* a few instructions; nothing else is taken under it */
	bool keeps_spares;
	uint64_t spares[WFS_SPARES]; /* data files that lib/spare.h keeps */
	size_t n_spares;

	pthread_mutex_t collect_lock; /* held by the one collector */
	atomic_bool collect_wanted;
	atomic_bool settle_wanted; /* objects lost references since whole copies were last settled: lib/whole.h */
	atomic_bool has_said_failed;
	atomic_bool is_direct;    /* programs use data files themselves: wfs_store_use_directly */
	atomic_bool cannot_punch; /* the disk below has no hole punching */
	atomic_int shares_blocks; /* 1: the disk below lets files share blocks; -1: not; 0: not tried yet */
};

/* Which inodes ever had which data file pinned. NULL: out of memory. */
struct wfs_pins *wfs_pins_new(void);
void wfs_pins_free(struct wfs_pins *pins);

/* lib/model_settle.c: count the rows of table tensor. */
int wfs_model_count_pending(struct wfs_store *s);

/* Models that were read before: lib/model.h. */
struct wfs_models *wfs_models_new(void);
void wfs_models_free(struct wfs_models *models);
void wfs_models_clear(struct wfs_models *models);

void wfs_store_log(struct wfs_store *s, const char *fmt, ...) WFS_PRINTF(2, 3);

/* Does the disk below let data files share blocks? Tried out at the first call. */
bool wfs_store_shares_blocks(struct wfs_store *s);

/*
 * wfs_datafile_sync of a staging file. If it fails, the file that it belongs to is reported from then
 * on (reason WFS_REASON_SYNC_FAILED), and so is every further call for it.
 */
int wfs_store_sync_staging(struct wfs_store *s, struct wfs_datafile *df);
/* Have it reported, if it is not yet. */
void wfs_store_report_unsure(struct wfs_store *s, uint64_t data_file);
/* All bytes of a dirty file were cut off: what was not written is none of it any more. */
void wfs_store_staging_is_empty(struct wfs_store *s, struct wfs_datafile *df);

/* At opening: which syncs have failed before this process. */
int wfs_store_load_unsure(struct wfs_store *s);
/* wfs_db_sync_to; if it fails for good, `weightfs status` is told. */
int wfs_store_sync_to(struct wfs_store *s, uint64_t commits);

/* ---- pieces of lib/name.c that the lifecycle shares; within a transaction ---- */

/* Is a directory the other or below it? 1, 0 or -errno. */
int wfs_name_is_below(struct wfs_store *s, uint64_t dir, uint64_t ancestor);

/* 1, 0 (no such inode) or -errno. Size and times of a dirty file are those of its data file. */
int wfs_inode_get(struct wfs_store *s, uint64_t ino, struct wfs_attr *ret);

/* Record a new data file in `state` and make it, empty. */
int wfs_staging_create(struct wfs_store *s, uint64_t state, uint64_t *ret_id);

#endif
