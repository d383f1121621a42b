/*
 * world.h - a store, and what is known of it: for every name what it must hold.
 *
 * Operations do to the store what the driver does, and note in the model what has been
 * acknowledged. One that fails must have changed nothing (a write: each byte is the old
 * one or the new one); its errno must be that of the fault, or EIO. The model is in memory
 * that is shared with the process that looks at the store afterwards.
 */
#ifndef WFS_TESTS_WORLD_H
#define WFS_TESTS_WORLD_H

#include "lib/base.h"
#include "lib/model_write.h"
#include "lib/store.h"

/* Everything that a file may hold. */
enum content {
	ABSENT,
	EMPTY,
	SMALL,
	SMALL_2,
	BIG,
	BIG_PATCHED, /* BIG with other bytes in the middle */
	BIG_CUT,     /* the first half of BIG */
	SHARD,
	SHARD_2,     /* one tensor of SHARD, one of its own */
	SHARD_PATCHED,
	SHARD_CUT,   /* the first half of SHARD: incomplete */
	SHARD_WRONG, /* its header is none */
	CONTENTS,
};

#define MAX_NAMES 24
#define MAX_HISTORY 32
#define MAX_FLIPS 4
#define PATH_ROOM 500 /* of paths */

struct name {
	char name[32];
	uint64_t tensor_seed; /* of a tensor of directory "m"; 0: a file of the root */
	uint8_t history[MAX_HISTORY]; /* what it held, the last one now */
	uint8_t n;
	uint8_t durable; /* index in history: what is there since the last fsync that returned 0 */
	bool torn;       /* a write failed: `torn_to` has come in part */
	uint8_t torn_to;
	bool damaged;    /* bytes of it have been changed behind the store's back */
	bool loose;      /* what it has may be lost with what was damaged: then it says so, or has no name */
	bool lacks;      /* a power cut may have taken bytes: that is reported */
	char reason[32]; /* that the gate gave when it was closed; "" if none */
	bool unjudged;   /* it could not give any */
};

/* A byte that was changed in a data file. */
struct flip {
	uint64_t data_file, offset;
	bool found; /* by the last check that ran to its end */
};

struct model {
	struct name names[MAX_NAMES];
	uint32_t n;
	struct flip flips[MAX_FLIPS];
	uint32_t n_flips;
	bool heals;      /* what was found can be mended: by a whole copy */
	/* acknowledged: */
	bool marked;     /* all that is damaged has a mark */
	bool repaired;   /* and was repaired */
	bool backed_up;
	bool saved;      /* the set-up has made a backup: struct world */
	bool finished;   /* all was sealed since */
	bool limited;    /* the store may be full */
	unsigned texts;  /* of damaged files, that were seen */
	/* of the run */
	uint64_t hits;
	int32_t error;     /* that faults have */
	bool syncs;        /* it is syncs that fail */
	bool reads;        /* it is reads that fail */
	bool loses;        /* what was not synced may be gone, if that is reported */
	bool failed;       /* something is not as it must be: `message` */
	char message[600];
};

struct world {
	char path[PATH_ROOM]; /* of the store */
	char side[PATH_ROOM]; /* a directory for what lies beside it, which may not be there */
	struct wfs_store *store;
	uint64_t max_size;    /* that it is opened with */
	struct model *m;
	struct model *saved;  /* what was known when the set-up made its backup */
};

void world_make_contents(void);

/* Not as it must be; the first one counts. */
void world_fail(struct world *w, const char *fmt, ...) WFS_PRINTF(2, 3);

/* ---- operations; each does nothing where one that it needs has failed ---- */

int world_open(struct world *w);
void world_close(struct world *w);
void world_create(struct world *w, const char *name);
/* All of the content, or from the first byte that differs to the last; through one handle. */
void world_write(struct world *w, const char *name, enum content content);
void world_truncate(struct world *w, const char *name, enum content content);
void world_put(struct world *w, const char *name, enum content content); /* create and write */
void world_seal(struct world *w, const char *name);
void world_seal_small(struct world *w);
void world_unlink(struct world *w, const char *name);
void world_rename(struct world *w, const char *from, const char *to);
void world_link(struct world *w, const char *from, const char *to);
void world_clone(struct world *w, const char *from, const char *to);
void world_attributes(struct world *w, const char *name);
void world_directory(struct world *w);
void world_sync(struct world *w, const char *name);
void world_sync_all(struct world *w);
void world_checkpoint(struct world *w);
void world_tidy(struct world *w);
void world_collect(struct world *w);
void world_repack(struct world *w, const char *name);
void world_mkdir_model(struct world *w);
void world_put_tensor(struct world *w, const char *tensor, uint64_t seed);
void world_remove_tensor(struct world *w, const char *tensor);
void world_rename_tensor(struct world *w, const char *from, const char *to);
void world_put_turned(struct world *w, const char *tensor, uint64_t seed); /* big-endian: it is converted */
void world_reshard(struct world *w, uint64_t max_shard_size);
void world_look_at_model(struct world *w);
void world_settle(struct world *w);
void world_look(struct world *w);
void world_fsck(struct world *w);

/* ---- behind its back, without faults ---- */

/* As snprintf; what is too long ends the program. */
void world_format(char ret[PATH_ROOM], const char *fmt, ...) WFS_PRINTF(2, 3);
void world_sql(struct world *w, const char *sql);
uint64_t world_ask(struct world *w, const char *sql); /* the first column of the first row, which there is */
void world_data_path(const struct world *w, uint64_t data_file, char ret[PATH_ROOM]);
void world_side_path(const struct world *w, const char *name, char ret[PATH_ROOM]);
void world_side_mkdir(const struct world *w, const char *name); /* and the directory itself */
/* A copy of a directory, in place of what was there; nothing if there is none. */
void world_copy_tree(const char *from, const char *to);

/* ---- afterwards, without faults ---- */

/* Everything is as the model says, and nothing else is there. */
void world_check(struct world *w);
/* All that was left undone can be done now. */
void world_finish(struct world *w);
/* fsck --bytes finds nothing. */
void world_check_clean(struct world *w);

#endif
