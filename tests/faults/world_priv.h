/* world_priv.h - what world.c, which acts, and world_check.c, which looks afterwards, share. */
#ifndef WFS_TESTS_WORLD_PRIV_H
#define WFS_TESTS_WORLD_PRIV_H

#include "lib/file.h"
#include "lib/fsck.h"
#include "tests/faults/world.h"

#define EACH ((size_t)70000) /* bytes of a tensor: too many for the database */

struct world_content {
	uint8_t *bytes;
	size_t len;
};

extern struct world_content world_contents[CONTENTS];

/* Bytes that look like nothing else, for each seed others. The caller frees them. */
uint8_t *world_noise(size_t len, uint64_t seed);

/* What is known of this name; of a new one, that it is absent. */
struct name *world_name(struct world *w, const char *name);
enum content world_now(const struct name *n);
bool world_is_there(struct world *w, const char *name);

/* In the root: 0, or the error of a look-up. */
int world_inode(struct world *w, const char *name, uint64_t *ret);
int world_file(struct world *w, const char *name, struct wfs_file **ret);

/* Did the operation do what it was asked for? Where not, the fault must be why. */
bool world_did(struct world *w, int ret, const char *what, const char *name);

/* The same of a write: a full disk may have taken a part of it. */
bool world_wrote(struct world *w, int ret, const char *name);
/* This is what the name has now. */
void world_set(struct name *n, enum content content);

/* For wfs_fsck; `ctx` is the world. */
void world_note_finding(void *ctx, const struct wfs_fsck_finding *finding);

#endif
