/*
 * scratch.h - files that are being written in a .tensors.
 *
 * Each is a regular file of the store without a name; its name in .tensors is kept here, and in
 * memory alone, so that what was not closed well when the driver ends leaves nothing. Under the
 * name of a tensor (NAME.npy, NAME.safetensors) a file is put into the model when it is closed
 * (lib/model_write.h), and its entry ends with the last handle; under another name (a
 * program's temporary file) it stays until it is renamed or removed.
 *
 * The lock is a few instructions; nothing else is taken under it.
 */
#ifndef WFS_SCRATCH_H
#define WFS_SCRATCH_H

#include <pthread.h>
#include <stdatomic.h>

#include "lib/base.h"

struct wfs_scratch {
	/* under the table's lock */
	uint64_t dir;  /* the model directory */
	char *variant; /* NULL: none */
	char *name;    /* in .tensors */
	uint64_t ino;
	unsigned handles; /* open ones */
	bool put;	  /* it is the model's */
	bool begun;   /* it is no tensor yet, and whoever closed it comes back */
	bool refused; /* by its last close: nobody sees it, until another close puts it */
	bool over;    /* there is a tensor of this name, which is what others see until it is put */
	int32_t tid;  /* over: the thread that has come to open it, and looks the name up once more
		      */
	int64_t until_ns; /* without a handle it ends then; 0: it stays */
	struct wfs_scratch *next;
};

struct wfs_scratches {
	atomic_uint n;
	pthread_mutex_t lock;
	struct wfs_scratch *first; /* few */
};

void wfs_scratches_init(struct wfs_scratches *t);
void wfs_scratches_release(struct wfs_scratches *t);

/* A new one under this name, with one handle. -ENOMEM. */
int wfs_scratch_add(
	struct wfs_scratches *t, uint64_t dir, const char *variant, const char *name, uint64_t ino);
/* Over a tensor of this name, for a thread that comes to open it within `ms` milliseconds. */
int wfs_scratch_add_over(struct wfs_scratches *t, uint64_t dir, const char *variant,
	const char *name, uint64_t ino, int32_t tid, unsigned ms);
/* The inode that thread `tid` (0: any) is to see under this name: 1, 0. What was put the model has.
 */
int wfs_scratch_find(struct wfs_scratches *t, uint64_t dir, const char *variant, const char *name,
	int32_t tid, uint64_t *ret_ino);
/* One more handle of this inode. False: it is none of these. */
bool wfs_scratch_open(struct wfs_scratches *t, uint64_t ino);
/*
 * Where it stands: 1 with copies of variant (NULL: none) and name, to be freed; 0: it is none of
 * these; -ENOMEM.
 */
int wfs_scratch_place(struct wfs_scratches *t, uint64_t ino, uint64_t *ret_dir, char **ret_variant,
	char **ret_name);
/* Is it being written, or about to be, and not put yet? */
bool wfs_scratch_is_open(struct wfs_scratches *t, uint64_t ino);
/* It was closed, and is opened again within `ms` milliseconds. */
void wfs_scratch_set_begun(struct wfs_scratches *t, uint64_t ino, unsigned ms);
/* The inode of one of this name, other than `except`, whose entry has ended; 0: none. */
uint64_t wfs_scratch_take(struct wfs_scratches *t, uint64_t dir, const char *variant,
	const char *name, uint64_t except);
void wfs_scratch_set_put(struct wfs_scratches *t, uint64_t ino);
/* What was closed was no tensor. Whoever still has it open may go on, and close it again. */
void wfs_scratch_set_refused(struct wfs_scratches *t, uint64_t ino);
/* A handle fewer. `is_tensor`: its name is a tensor's. True: its entry has ended and it was not
 * put: nobody needs the file. */
bool wfs_scratch_close(struct wfs_scratches *t, uint64_t ino, bool is_tensor);
/* Its entry ends if it has no handle. */
void wfs_scratch_end_if_unused(struct wfs_scratches *t, uint64_t ino);
/* Its entry ends. */
void wfs_scratch_remove(struct wfs_scratches *t, uint64_t ino);
/* Another name, also in another directory; *ret_replaced: the inode of one that had that name,
 * whose entry has ended, or 0. */
int wfs_scratch_rename(struct wfs_scratches *t, uint64_t ino, uint64_t dir, const char *variant,
	const char *name, uint64_t *ret_replaced);
/* Those whose time is over: the inode of one, whose entry has ended; 0: none. */
uint64_t wfs_scratch_take_old(struct wfs_scratches *t);

#endif
