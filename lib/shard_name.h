/*
 * shard_name.h - the file names of models: one file, shards, the index of shards.
 *
 *   model.safetensors                     base "model"
 *   model.fp16.safetensors                base "model", variant "fp16"
 *   model-00001-of-00003.safetensors      base "model", number 1 of 3
 *   model.fp16-00001-of-00003.safetensors
 *   model.safetensors.index.json          base "model", index
 *   model.safetensors.index.fp16.json     base "model", variant "fp16", index
 *
 * The names of transformers 5.23 (modeling_utils.py: _add_variant, and
 * save_pretrained's filename_pattern) with the numbers of huggingface_hub
 * ("-{:05d}-of-{:05d}"). Not known here: what diffusers once wrote,
 * "model-00001-of-00003.fp16.safetensors" (base "model-00001-of-00003", variant "fp16").
 *
 * Pure, any thread, no allocation. Names are bytes; none is longer than 255.
 */
#ifndef WFS_SHARD_NAME_H
#define WFS_SHARD_NAME_H

#include "lib/base.h"

/* Bytes of the longest name, and the NUL behind it. */
#define WFS_SHARD_NAME_SIZE 256

struct wfs_shard_name {
	char base[WFS_SHARD_NAME_SIZE];	   /* never empty */
	char variant[WFS_SHARD_NAME_SIZE]; /* "" also where there is none */
	bool has_variant;
	bool is_index;
	uint32_t number; /* of the shard, at most count; 1 is the first, some writers begin at 0 */
	uint32_t count;	 /* shards; 0: no numbers in the name, one file or an index */
};

/*
 * Write the name of a file of tensors to buf[size], with a NUL behind it; a buffer of
 * WFS_SHARD_NAME_SIZE is always enough. `variant` may be NULL. number = count = 0: the
 * name of a model in one file. huggingface_hub gives that name where its plan has one
 * shard, so the caller that plans turns a count of 1 into 0; here a count of 1
 * is written as it stands, since such files exist.
 *
 * -EINVAL: base is empty, base or variant holds '/', number > count.
 * -ENAMETOOLONG: more than 255 bytes, or than fit buf. Then buf holds no name.
 */
int wfs_shard_name(char *buf, size_t size, const char *base, const char *variant, uint32_t number,
	uint32_t count) WFS_WARN_UNUSED;

/* The same for the index of the shards. */
int wfs_shard_index_name(
	char *buf, size_t size, const char *base, const char *variant) WFS_WARN_UNUSED;

/*
 * Read a name. False, and *ret as it was, if it is none of the above, is longer than 255
 * bytes, holds '/' or has an empty base.
 *
 * The name of a file of tensors does not say where its base ends: "model.fp16.safetensors" is
 * the variant "fp16" of "model", or the base "model.fp16". Here the base ends at the
 * first '.', and all that follows is the variant. In the name of an index, the
 * base is what stands before ".safetensors.index", dots included: huggingface_hub
 * writes "model.fp16.safetensors.index.json" where the pattern is "model.fp16{suffix}…".
 *
 * Numbers have five digits or more, are written without sign, and fit 32 bits; with
 * fewer digits, with a count of 0 or with number > count they are part of the base or variant.
 * "model-00001-of-000163.safetensors" (DeepSeek-V3) is number 1 of 163. Built
 * again, every name is the same but for such zeros.
 */
bool wfs_shard_name_parse(const char *name, struct wfs_shard_name *ret);

/*
 * Is it a name of this model, wherever the reader let the base of a file of tensors end? So
 * "a.b.safetensors" is of base "a.b", and of base "a" with the variant "b" (NULL: none).
 */
bool wfs_shard_name_is_of(const struct wfs_shard_name *name, const char *base, const char *variant);

#endif
