/*
 * sample.h - the sample model: its plan, and the small files around its shards.
 *
 * tools/sample_model.c plans it and writes the shards, tools/sample_files.c
 * the rest. All that write return 0, or 1 with the error printed.
 */
#ifndef WFS_TOOLS_SAMPLE_H
#define WFS_TOOLS_SAMPLE_H

#include <jansson.h>

#include "lib/base.h"
#include "lib/dtype.h"

#define SAMPLE_HEAD 64    /* elements of an attention head */
#define SAMPLE_VOCAB 8192 /* tokens; the tokenizer's are the first of them */

struct sample {
	const char *dir;
	uint64_t seed;
	uint64_t layers, hidden; /* hidden: a multiple of SAMPLE_HEAD */
	enum wfs_dtype dtype;    /* F32 or BF16 */
	/* in the order of the model's state_dict */
	struct sample_tensor {
		char *name;
		uint64_t shape[2];
		uint32_t ndim;
		uint64_t bytes;
		size_t shard;
	} *tensors;
	size_t n, room;
	size_t n_shards;
};

/* Sizes that follow from the others, as Llama has them. */
uint64_t sample_inner_size(const struct sample *m);
uint64_t sample_kv_heads(const struct sample *m);

/* Say what went wrong with a file; `error` is an errno. Returns 1. */
int sample_fail(const char *path, int error);

/*
 * Write a file as savers do: open a temporary name (-1: printed; else *ret_tmp
 * is the caller's), write, finish it under its real name. `ret` of finish is
 * how writing went: 0 or -errno; the descriptor is closed in any case.
 */
int sample_open(const struct sample *m, char **ret_tmp);
int sample_write_all(int fd, const void *buf, size_t len); /* 0 or -errno */
int sample_finish(const struct sample *m, int fd, const char *tmp, const char *name, int ret);

/* Takes over `value`; sorted, indented by 2, a newline at the end, as save_pretrained does it. */
int sample_write_json(const struct sample *m, const char *name, json_t *value);

int sample_write_config(const struct sample *m);
int sample_write_generation_config(const struct sample *m);
int sample_write_tokenizer(const struct sample *m);

#endif
