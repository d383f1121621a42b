/*
 * collect.h - give back the space of what is dead.
 *
 * Order (DESIGN §5): the transaction that drops a reference is made durable
 * first; then the data file is removed or the range punched; then the row that
 * remembered it goes. A crash between any two of these leaves work for the
 * next call, never a lost byte.
 */
#ifndef WFS_COLLECT_H
#define WFS_COLLECT_H

#include "lib/base.h"
#include "lib/store.h"

/* True if there may be something to do; cheap. */
bool wfs_collect_wanted(struct wfs_store *s);

/*
 * Take dead manifests apart, remove doomed data files and punch dead ranges,
 * except where somebody has the file in use: those stay for later. 0 or the
 * first -errno. One caller at a time (others wait). Blocks on the disk.
 */
int wfs_collect(struct wfs_store *s);

#endif
