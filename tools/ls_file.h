/*
 * ls_file.h - the half of `weightfs ls` that looks into regular files.
 */
#ifndef WFS_TOOLS_LS_FILE_H
#define WFS_TOOLS_LS_FILE_H

#include "lib/base.h"
#include "lib/name.h"
#include "lib/store.h"
#include "tools/target.h"

/* "dirty" or "sealed". Static storage. */
const char *ls_state(const struct wfs_attr *attr);

/*
 * Print what the regular file `attr` of an open store holds: tensors, where it
 * parses as safetensors; else its pieces. The exit status, errors printed.
 */
int ls_file(struct wfs_store *store, const struct target *target, const struct wfs_attr *attr,
	bool json);

#endif
