/*
 * model_view.h - a model in a mount as its views show it (fs/view.h): the tensors as
 * files of DIR/.tensors, with what their extended attributes say.
 *
 * For `weightfs tensors`, `cat`, `put` and `shard`. Only files are looked at, neither
 * store nor database: what the user may not read, these commands cannot show.
 *
 * Functions that return a status print the error themselves; it is the exit status of the
 * command then.
 */
#ifndef WFS_TOOLS_MODEL_VIEW_H
#define WFS_TOOLS_MODEL_VIEW_H

#include "lib/base.h"

/* Prefix of the extended attributes that views have. */
#define MODEL_VIEW_XATTR "user.weightfs."

struct model_view {
	char *dir;     /* absolute path of the model's directory */
	char *tensors; /* DIR/.tensors or DIR/.tensors@VARIANT */
};

/*
 * The model in the directory `path` of a mount; variant NULL: none. 0; 1: it is in no
 * mount of weightfs, no directory, or has no views; 2: there can be no such variant.
 * model_view_release in any case.
 */
int model_view_open(const char *path, const char *variant, struct model_view *ret);
void model_view_release(struct model_view *v);

/*
 * What was left out of the model, or refused lately: a line for each file, "FILE: REASON".
 * NULL: nothing. The caller frees.
 */
char *model_view_errors(const struct model_view *v);

/* Of these the reason for one file, by its path; NULL: there is none. The caller frees. */
char *model_view_reason(const struct model_view *v, const char *path);

/* ---- the file of a tensor ---- */

enum model_view_form {
	MODEL_VIEW_NPY,
	MODEL_VIEW_SAFETENSORS,
};

/*
 * The path of a tensor's file, whether it is there or not. NULL: the name is too long for a
 * file's name. The caller frees. The rule for names is that of fs/view.h.
 */
char *model_view_file(
	const struct model_view *v, const char *tensor, size_t len, enum model_view_form form);

/* Print that this name is too long for a file's, with what can be done. Returns 1. */
int model_view_too_long(const char *tensor, const char *hint);

/* ---- all tensors ---- */

struct model_tensor {
	char *name; /* any bytes, name_len of them */
	size_t name_len;
	char *dtype;	 /* NULL, as all strings below: not known */
	char *shard;	 /* the file that it is in */
	char *digest;	 /* also NULL while the shard is dirty, and without bytes */
	uint64_t *shape; /* elements, ndim of them; NULL: too many to be asked for */
	size_t ndim;
	uint64_t bytes; /* without header; UINT64_MAX: not known */
};

struct model_tensors {
	struct model_tensor *list; /* in the order of the listing: shard by shard */
	size_t n, room;
};

/*
 * Read them all. Those whose name is too long for a file's stand behind the others, without
 * digest, as the headers of the shards have them. 0 or 1; model_tensors_release in any case.
 */
int model_tensors_read(const struct model_view *v, struct model_tensors *ret);
void model_tensors_release(struct model_tensors *t);

/* Print what the list alone would hide: model_view_errors, and that it is empty. No error of the
 * command. */
void model_tensors_notes(const struct model_view *v, const struct model_tensors *t);

#endif
