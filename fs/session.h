/*
 * session.h - one mount of one store, from opening it to the end.
 *
 * The only door that tools/ has into the driver. Nothing here parses a command
 * line. Call wfs_session_run once in a process, before any thread is started:
 * it forks, unless `foreground`.
 */
#ifndef WFS_SESSION_H
#define WFS_SESSION_H

#include "lib/base.h"
#include "lib/err.h"
#include "lib/store.h"

/* Do programs read, write and map data files themselves? fs/passthrough.h */
enum wfs_passthrough_option {
	WFS_PASSTHROUGH_AUTO, /* where it can be had */
	WFS_PASSTHROUGH_ON,   /* or the mount fails */
	WFS_PASSTHROUGH_OFF,
};

/* .tensors and .shards: fs/view.h */
enum wfs_views_option {
	WFS_VIEWS_HIDDEN, /* found by name, in no listing */
	WFS_VIEWS_LISTED, /* in the listing of a directory that has a model */
	WFS_VIEWS_OFF,
};

/* All strings are borrowed until wfs_session_run returns. */
struct wfs_mount_options {
	const char *store;      /* directory; made if it is missing, unless read_only */
	const char *mountpoint; /* an existing directory that is not in the store */
	bool foreground;        /* do not go to the background */
	bool debug;             /* print every request; implies foreground */
	bool verbose;           /* log what is sealed, shared and given back */
	bool allow_other;       /* other users than the caller may use the mount */
	bool read_only;
	bool no_sandbox;        /* keep what fs/sandbox.h would give up */
	enum wfs_validate validate;
	enum wfs_passthrough_option passthrough;
	enum wfs_views_option views;
	uint64_t max_shard_size; /* bytes: lib/model_write.h; 0: the usual */
	uint64_t max_size; /* bytes of disk blocks; 0: no limit */
	const char *fuse_options; /* further options for the kernel or fusermount3, comma separated, or NULL */
};

/*
 * Opens the store, mounts, goes to the background unless foreground (the
 * parent returns only when the mount answers), serves until unmounted. Returns
 * the exit status: 0, or 1 with the error printed through `report`.
 */
int wfs_session_run(const struct wfs_mount_options *options,
	void (*report)(const struct wfs_err *err));

/*
 * Is a FUSE mount at `path` whose driver is gone, so that nothing can come of it any
 * more? Asks it, and so waits for a driver that lives.
 */
bool wfs_is_dead_mount(const char *path);

#endif
