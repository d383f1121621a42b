/*
 * datafile.h - data/xx/ID: create, open with few descriptors, sync, punch.
 *
 * One struct wfs_datafile exists for each data file that somebody refers to;
 * its descriptor is opened at the first use and closed again, least recently
 * used first, when too many are open. The rows of table data_file are not
 * looked at here.
 *
 * A reference says that somebody has the file open, in the sense of DESIGN §4:
 * while there is one, nothing is punched out of the file and it is not removed.
 * The collector in turn marks a file while it is at it, so that no unseal takes
 * it as staging meanwhile.
 *
 * Lock: the table's, the last of all; never held across a system call on data.
 */
#ifndef WFS_DATAFILE_H
#define WFS_DATAFILE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "lib/base.h"
#include "lib/err.h"
#include "lib/owner.h"

#define WFS_DATAFILE_BUCKETS 4096

/* Bytes of a data file that are not what was stored: nobody is given them. */
struct wfs_bad_range {
	uint64_t data_file, offset, length;
};

struct wfs_datafile {
	uint64_t id; /* constant */
	/* under the table's lock */
	struct wfs_datafile *next;           /* in its bucket */
	struct wfs_datafile *newer, *older;  /* open and not in use, by time of use */
	unsigned refs;
	unsigned users;  /* who use the descriptor now */
	int fd;          /* -1: not open */
	bool frozen;     /* the descriptor is, or is to be opened, for reading alone */
	bool collecting;
	bool dir_synced; /* its directory entry is known to be durable */
	struct wfs_bad_range *bad; /* n_bad of them; NULL with has_bad: all of it */
	size_t n_bad;
	/* under no lock */
	atomic_bool has_bad; /* once true it stays so, for as long as there is a reference */
};

struct wfs_datafiles {
	int data_fd; /* descriptor of STORE/data */
	struct wfs_owner owner; /* of that directory */
	bool read_only;
	pthread_mutex_t lock;
	/* under lock */
	struct wfs_datafile *buckets[WFS_DATAFILE_BUCKETS];
	struct wfs_datafile *newest, *oldest; /* idle open ones */
	unsigned n_open, max_open;
	uint64_t *unsure; /* ids of files that a sync has failed for; in no order */
	size_t n_unsure, unsure_room;
	bool all_unsure; /* there was no memory to list one */
	unsigned dirs_made, dirs_synced; /* of the directories xx: those made here, and those known to be durable */
	struct wfs_bad_range *bad; /* n_bad of them, in all data files */
	size_t n_bad;
	/* under no lock */
	atomic_int closes_off; /* does the disk hold the immutable flag against open descriptors? 0: not tried */
};

/* `data_fd` becomes the table's. max_open: descriptors that may stay open idle. */
void wfs_datafiles_init(struct wfs_datafiles *t, int data_fd, bool read_only, unsigned max_open);
void wfs_datafiles_release(struct wfs_datafiles *t);

/* data/xx/ID in `buf`, relative to the store. */
#define WFS_DATAFILE_PATH_SIZE 32
void wfs_datafile_path(uint64_t id, char buf[WFS_DATAFILE_PATH_SIZE]);
/* Is a name in data/ of this many digits as wfs_datafile_path writes them: 2 for xx, 16 for ID? */
bool wfs_datafile_is_hex(const char *name, size_t len);

/*
 * Make the file of a new id, empty. A file that is there already was left by a
 * crash before its row was committed, and is emptied.
 */
int wfs_datafile_create(struct wfs_datafiles *t, uint64_t id);

/* Remove the file; a missing one is success. */
int wfs_datafile_remove(struct wfs_datafiles *t, uint64_t id);

/* A reference; the file itself is opened later. NULL: out of memory. */
struct wfs_datafile *wfs_datafile_get(struct wfs_datafiles *t, uint64_t id);
struct wfs_datafile *wfs_datafile_ref(struct wfs_datafiles *t, struct wfs_datafile *df);
void wfs_datafile_unref(struct wfs_datafiles *t, struct wfs_datafile *df);

/*
 * lib/datafile_bad.c. From now on these are the bad ranges; `ranges` (malloc, may be NULL) is the
 * table's. What was bad in a data file stays so for those who have a reference to it: they know no
 * other place of these bytes.
 */
void wfs_datafiles_set_bad(struct wfs_datafiles *t, struct wfs_bad_range *ranges, size_t n);
/* The bytes of the range that begins there are right after all, also for those who have a reference. */
void wfs_datafiles_clear_bad(struct wfs_datafiles *t, uint64_t data_file, uint64_t offset);
/* Is a byte of [offset, +length) in a bad range? */
bool wfs_datafile_is_bad(struct wfs_datafiles *t, struct wfs_datafile *df, uint64_t offset,
	uint64_t length);
/* Under the lock: a data file that has just got its first reference. */
void wfs_datafile_note_bad(struct wfs_datafiles *t, struct wfs_datafile *df);

/* How many references there are now. */
unsigned wfs_datafile_count_refs(struct wfs_datafiles *t, struct wfs_datafile *df);

/* A descriptor to use until wfs_datafile_unuse; or -errno. `use` to read, `use_to_write` to write, too. */
int wfs_datafile_use(struct wfs_datafiles *t, struct wfs_datafile *df);
int wfs_datafile_use_to_write(struct wfs_datafiles *t, struct wfs_datafile *df);
void wfs_datafile_unuse(struct wfs_datafiles *t, struct wfs_datafile *df);

/*
 * Mark the file until end_collect; false, and nothing is marked, if anybody but
 * the caller has a reference.
 */
bool wfs_datafile_begin_collect(struct wfs_datafiles *t, struct wfs_datafile *df);
void wfs_datafile_end_collect(struct wfs_datafiles *t, struct wfs_datafile *df);
/* Once false, it stays so for as long as the caller keeps its reference. */
bool wfs_datafile_is_collecting(struct wfs_datafiles *t, struct wfs_datafile *df);

/*
 * Where programs have data files open and mapped themselves (passthrough), only the
 * kernel knows who still has one: a mapping outlives every handle. Both ask it by
 * taking a lease (fcntl(2), F_SETLEASE) for a moment.
 *
 * freeze: 0 if nobody can write the file any more: our descriptor cannot until the
 * next wfs_datafile_use_to_write, and no other one is open for it. -EBUSY: somebody
 * can still write it.
 *
 * is_ours: true if nobody but us has the file open or mapped at all.
 */
int wfs_datafile_freeze(struct wfs_datafiles *t, struct wfs_datafile *df);
bool wfs_datafile_is_ours(struct wfs_datafiles *t, struct wfs_datafile *df);

/*
 * Let nobody write the file any more, not even through descriptors that are open for
 * it (the immutable flag of ext4; needs CAP_LINUX_IMMUTABLE). -EOPNOTSUPP where the
 * disk does not hold it against open descriptors. reopen and removal undo it.
 */
int wfs_datafile_close_off(struct wfs_datafiles *t, struct wfs_datafile *df);
int wfs_datafile_reopen(struct wfs_datafiles *t, uint64_t id);

/* A new file without a name beside the data files, to try things out; the caller closes it. */
int wfs_datafiles_scratch(struct wfs_datafiles *t);

/* A new descriptor of the file, to read; the caller closes it. */
int wfs_datafile_open(struct wfs_datafiles *t, uint64_t id);

/* Give all its bytes back; it stays, with length 0. */
int wfs_datafile_empty(struct wfs_datafiles *t, struct wfs_datafile *df);

/*
 * fdatasync, and of the directory if the file is new. Once that has failed, nobody can say any more
 * what of the file is on the disk, and the kernel may take for written what is not: every
 * further call fails with -EIO (docs/decisions/0020), until the file is made anew or emptied.
 */
int wfs_datafile_sync(struct wfs_datafiles *t, struct wfs_datafile *df);

/* Has a sync of it failed? And: it has, before this process; or what may be missing is cut off. */
bool wfs_datafile_is_unsure(struct wfs_datafiles *t, uint64_t id);
void wfs_datafile_set_unsure(struct wfs_datafiles *t, uint64_t id, bool unsure);

int wfs_datafile_stat(struct wfs_datafiles *t, uint64_t id, struct stat *ret);
/* Set times as utimensat(2) does. */
int wfs_datafile_utimens(struct wfs_datafiles *t, uint64_t id, const struct timespec times[2]);

/* pread/pwrite all of `len`; -EIO at an early end. Interrupted and short calls go on. */
int wfs_pread_all(int fd, void *buf, size_t len, uint64_t offset);
ssize_t wfs_pwrite_some(int fd, const void *buf, size_t len, uint64_t offset);

#endif
