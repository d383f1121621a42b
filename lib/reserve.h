/*
 * reserve.h - space that is kept so that a full disk never prevents removal.
 *
 * A removal is a transaction, and has to be written somewhere: to the database's
 * log. STORE/reserve holds WFS_RESERVE_BYTES of disk blocks for that. A removal that
 * meets ENOSPC first has the log written into the database, so that its space is
 * used again, then gives up the reserve. The housekeeper takes it again when
 * there is room.
 */
#ifndef WFS_RESERVE_H
#define WFS_RESERVE_H

#include "lib/base.h"
#include "lib/store.h"

#define WFS_RESERVE_BYTES (UINT64_C(16) << 20)

/* Take the reserve if it is not there and the disk has four times its size free. 0 or -errno. */
int wfs_reserve_take(struct wfs_store *s);

/*
 * Find room for a transaction that failed with ENOSPC. True: it may be tried
 * once more. No lock may be held; waits for the disk.
 */
bool wfs_reserve_make_room(struct wfs_store *s);

/*
 * False while the reserve is given up and the disk is nearly full: what is left is
 * for removals. Work that can wait, such as sealing, then waits.
 */
bool wfs_reserve_is_safe(struct wfs_store *s);

#endif
