/*
 * power.h - after a power cut: which files may lack bytes, and what is left over.
 *
 * Called by lib/recover.c; the check of a store asks for the boot id. Whether the power went is
 * told by the kernel's boot id: the store was not unmounted, and this is another boot than the one
 * in which it was last open. A process that dies loses nothing that it had written; a disk that is
 * pulled out under a running machine is taken for that.
 */
#ifndef WFS_POWER_H
#define WFS_POWER_H

#include "lib/base.h"
#include "lib/store.h"

#define WFS_META_BOOT_ID "boot_id"
#define WFS_BOOT_ID_SIZE 64

/* Of this boot ("unknown" where the kernel has none); 0 or -errno. WEIGHTFS_BOOT_ID in its place, where a test cuts the power of a disk alone. */
int wfs_power_boot_id(char ret[WFS_BOOT_ID_SIZE]);

/* Was the store last open in another boot, and not unmounted there? Before meta.boot_id is set anew. */
int wfs_power_was_cut(struct wfs_store *s, bool *ret);

/*
 * A staging file that nobody had flushed may not be on the disk at all: it is there again, empty. One that
 * was flushed and is missing stays so: that is damage.
 */
int wfs_power_make_missing(struct wfs_store *s);

/*
 * Report every dirty file that has a name and was not flushed since it was changed (lib/flush.h): by
 * the reason "power-cut". It can be read, written and replaced. *ret_n: how many.
 */
int wfs_power_report(struct wfs_store *s, size_t *ret_n);

/*
 * Take back what was put into models by files that were not flushed (table tensor): the shards have
 * what was there before. *ret_n: how many.
 */
int wfs_power_unput(struct wfs_store *s, size_t *ret_n);

/* Remove data files without a row: the rows were lost, or the removal of the file was. Looks at all. */
int wfs_power_sweep(struct wfs_store *s);

#endif
