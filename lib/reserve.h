/*
 * reserve.h - space that is kept so that a full disk never prevents removal.
 *
 * A removal is a transaction, and has to be written somewhere: to the database's
 * log. STORE/reserve holds WFS_RESERVE_BYTES of disk blocks for that. A removal that
 * meets ENOSPC first has the log written into the database, so that its space is
 * used again, then gives up the reserve. It is taken again when there is room.
 *
 * On a disk with more than WFS_RESERVE_BELOW bytes free there is no reserve: nobody
 * fills that between two looks of the housekeeper.
 */
#ifndef WFS_RESERVE_H
#define WFS_RESERVE_H

#include "lib/base.h"
#include "lib/store.h"

#define WFS_RESERVE_BYTES (UINT64_C(16) << 20)
#define WFS_RESERVE_BELOW (UINT64_C(4) << 30)

/*
 * Take the reserve if the disk has less than WFS_RESERVE_BELOW and more than four
 * times the reserve free; return it if the disk has twice WFS_RESERVE_BELOW. Cheap:
 * to be called several times a second while files are written. 0 or -errno.
 */
int wfs_reserve_keep(struct wfs_store *s);

/*
 * Find room for a transaction that failed with ENOSPC. True: it may be tried
 * once more. `*tries`, 0 at first, counts the calls for one transaction. No lock
 * may be held; waits for the disk.
 */
bool wfs_reserve_make_room(struct wfs_store *s, int *tries);

/*
 * False while the reserve is given up and the disk is nearly full: what is left is
 * for removals. Work that can wait, such as sealing, then waits.
 */
bool wfs_reserve_is_safe(struct wfs_store *s);

#endif
