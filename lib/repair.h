/*
 * repair.h - give damaged objects their bytes back from files that lie elsewhere.
 *
 * Any tree of files will do: a backup, another mount, the place where a model came from. Of each
 * safetensors or .npy file below it the header and each tensor are tried, of each other file all
 * of it, where the length is that of something damaged: first what has the name of the
 * lost tensor or file, then the rest. The digest decides.
 *
 * The bytes go to a data file of their own (small ones to the database), are hashed again on
 * the way and are on the disk before the one transaction that has the objects live there.
 * What was there before is overwritten by nobody: it is given back like all that is dead.
 */
#ifndef WFS_REPAIR_H
#define WFS_REPAIR_H

#include "lib/base.h"
#include "lib/err.h"
#include "lib/store.h"
#include "lib/verify.h"

/*
 * `s` is open to write, and nobody uses a file of it. `bad` is what wfs_verify has found;
 * repaired[i] becomes true for those that are right now. 0, also where nothing was found
 * for some; -errno with *err, and then nothing has changed.
 */
int wfs_repair(struct wfs_store *s, const char *dir, const struct wfs_verify_bad *bad, size_t n,
	bool *repaired, struct wfs_err *err);

#endif
