/*
 * spare.h - empty data files that are kept to be used again.
 *
 * To make a data file and to remove it costs the disk more than all the rest of
 * a small file's life. So a doomed one that nobody has any more is emptied and
 * kept, some of them: its row stays doomed, and the next staging file takes
 * both (docs/decisions/0010). They are removed when the store is closed, and
 * after a crash like every doomed file.
 */
#ifndef WFS_SPARE_H
#define WFS_SPARE_H

#include "lib/base.h"
#include "lib/datafile.h"
#include "lib/store.h"

#define WFS_SPARES 1024

/* Within a transaction: 1 and *ret_id, a data file that is `state` now and empty. 0: there is none. -errno. */
int wfs_spare_take(struct wfs_store *s, uint64_t state, uint64_t *ret_id);

/*
 * For the collector: `df` is doomed, durably, and in nobody's hands. True if it was
 * emptied and kept; else it is to be removed.
 */
bool wfs_spare_keep(struct wfs_store *s, struct wfs_datafile *df);

/* What is kept now. Of these the collector touches none, even if one is taken meanwhile. How many. */
size_t wfs_spare_list(struct wfs_store *s, uint64_t ret_ids[WFS_SPARES]);

/* Keep none from here on: those there are belong to the collector. */
void wfs_spare_stop(struct wfs_store *s);

#endif
