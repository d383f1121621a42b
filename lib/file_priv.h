/*
 * file_priv.h - struct wfs_file, for lib/file.c, unseal.c, clone.c and seal.c.
 *
 * The content of a file changes hands (staging ↔ sealed) only in the way that
 * wfs_file_begin_change and wfs_file_end_change bracket: one thread at a time,
 * others wait, f->lock is not held meanwhile.
 */
#ifndef WFS_FILE_PRIV_H
#define WFS_FILE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "lib/content.h"
#include "lib/file.h"
#include "lib/store_priv.h"

struct wfs_file {
	struct wfs_store *store; /* constant */
	uint64_t ino;            /* constant */

	/* under store->files_lock */
	struct wfs_file *next;
	unsigned refs;

	/* Not beside what the lock guards: compilers read neighbours together. */
	atomic_bool unjudged;  /* written since the gate last looked */
	atomic_bool stop_seal; /* set by writers, read by the seal between two reads */

	pthread_mutex_t lock;
	/* under lock */
	pthread_cond_t changed;      /* loaded or changing became different */
	struct wfs_content *content; /* NULL until loaded */
	unsigned writers;            /* handles that may write, and operations that do */
	bool changing;               /* its content is being replaced */
	bool sealing;                /* a seal is at work */
	bool was_waited_for;         /* by a settling, in vain: lib/model_settle.c */
	unsigned pins;               /* lib/pin.c */
	unsigned pins_to_read;       /* of these */
	bool hollow;                 /* the pinned data file is closed off, and not where the bytes are */
	struct wfs_datafile *pinned; /* NULL without pins */
	struct {
		uint64_t data_file;  /* 0: never looked */
		uint64_t size;
		struct timespec mtime;
	} seen;                      /* by wfs_file_was_written */
};

/* Wait until nobody else changes the content, then be the one who does. */
void wfs_file_begin_change(struct wfs_file *f);
/* `content` (taken over; NULL: as it was) is the new one. */
void wfs_file_end_change(struct wfs_file *f, struct wfs_content *content);

/*
 * Make the file dirty if it is sealed, with at least its first `keep` bytes,
 * and return its staging content with a reference. The caller counts as a
 * writer. 0 or -errno, the file then being as it was.
 */
int wfs_file_staging(struct wfs_file *f, uint64_t keep, struct wfs_content **ret);

/* lib/unseal.c: the new content of a sealed file that is to be written; within a change. */
int wfs_unseal(struct wfs_file *f, struct wfs_content *old, uint64_t keep,
	struct wfs_content **ret);

/*
 * lib/clone.c: let `out` share the manifest of `in`. 1: done; 0: it cannot be
 * shared now, copy the bytes.
 */
int wfs_clone(struct wfs_file *in, struct wfs_file *out);

/*
 * lib/pin.c: within a change: nobody can read the pinned data file, it is empty, and
 * stays so; or it is not pinned at all. Else -EOPNOTSUPP. `cancel` if the content is
 * not replaced after all.
 */
int wfs_pin_begin_hollow(struct wfs_file *f);
void wfs_pin_cancel_hollow(struct wfs_file *f);
bool wfs_pin_is_hollow(struct wfs_file *f);
/* The bytes are in the pinned data file now. */
void wfs_pin_filled(struct wfs_file *f);

/* lib/pin.c: the data file that programs use, or NULL. Borrowed: only while the caller keeps a pin away or alive. */
struct wfs_datafile *wfs_file_pinned(struct wfs_file *f);
/*
 * When no program has the file open, nor its content is being changed: what the last
 * of them had, else NULL. Under f->lock; to be dropped without it.
 */
struct wfs_datafile *wfs_pin_take_unused(struct wfs_file *f);
void wfs_pin_drop(struct wfs_file *f, struct wfs_datafile *df);
/* `f` is not pinned: has a program that had it open, and nobody else, still a mapping of `df`? */
bool wfs_pin_is_left(struct wfs_file *f, struct wfs_datafile *df);
/* Can the pack `df`, whose only owner is `f`, become staging without anybody seeing bytes change that are not his? */
bool wfs_pin_may_reuse(struct wfs_file *f, struct wfs_datafile *df);

/* lib/unseal.c: a data file that is being filled, doomed by the next mount if this one ends; or doomed now. */
int wfs_filling_create(struct wfs_store *s, uint64_t *ret_id);
void wfs_filling_abandon(struct wfs_store *s, uint64_t data_file);

/* Copy [0, length) of a content to the start of data file `to`, holes kept where possible. */
int wfs_content_copy(struct wfs_content *from, uint64_t length, struct wfs_datafile *to);
/* Copy what is data in [at, at + length) of a content to the same place of `fd`, which has holes there. */
int wfs_content_copy_data(struct wfs_content *from, uint64_t at, uint64_t length, int fd);

#endif
