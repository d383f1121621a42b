/*
 * shard_index.h - the index of a model's shards, model.safetensors.index.json.
 *
 *   {
 *     "metadata": {
 *       "total_parameters": 1000,
 *       "total_size": 2000
 *     },
 *     "weight_map": {
 *       TENSOR NAME: SHARD FILE NAME, …
 *     }
 *   }
 *
 * Read by jansson, within bounds, so that its memory has one, too; written byte for byte as
 * transformers 5.23 writes it (modeling_utils.py, save_pretrained):
 * json.dumps(index, indent=2, sort_keys=True) + "\n". huggingface_hub's own
 * save_torch_model does not sort and ends without a newline; its files are read, not written.
 *
 * No file is opened here. Any thread may call; nothing blocks but malloc.
 */
#ifndef WFS_SHARD_INDEX_H
#define WFS_SHARD_INDEX_H

#include <jansson.h>

#include "lib/base.h"
#include "lib/err.h"

/* The longest text that is read, bytes. huggingface_hub 1.x refuses more than 10 MB. */
#define WFS_SHARD_INDEX_MAX_TEXT (UINT64_C(64) << 20)

/* Open containers at most, the outermost included; also in what is written. */
#define WFS_SHARD_INDEX_MAX_DEPTH 128

/* Commas and opening brackets of a text at most, where jansson allocates. */
#define WFS_SHARD_INDEX_MAX_VALUES (UINT32_C(1) << 21)

/* One tensor. Whose the strings are: see the function. */
struct wfs_index_entry {
	const char *tensor; /* UTF-8, tensor_len bytes */
	size_t tensor_len;
	const char *shard; /* the file beside the index, UTF-8, with a NUL behind it */
};

struct wfs_shard_index {
	json_t *metadata;  /* borrowed from root; NULL if there is none, or it is not an object */
	bool has_metadata; /* "metadata" is there, whatever it is */
	struct wfs_index_entry *entries; /* in order of first appearance; strings live in root */
	size_t n;
	json_t *root; /* private: what jansson read */
};

/*
 * Read an index. `text` (len bytes, not terminated) is not needed afterwards. Keys beside
 * metadata and weight_map are ignored, as transformers does. Of a key that is
 * there twice the last value counts, at the place of the first: that is Python's rule and
 * jansson's, without JSON_REJECT_DUPLICATES. transformers does not load an index
 * without metadata; here it is read, see has_metadata.
 *
 * -EBADMSG with a reason:
 *   index-too-large    len > WFS_SHARD_INDEX_MAX_TEXT
 *   index-too-deep     more than WFS_SHARD_INDEX_MAX_DEPTH containers in each other
 *   index-too-many     more than WFS_SHARD_INDEX_MAX_VALUES values
 *   index-tensor-name  a key holds \u0000, which jansson does not read; Python does
 *   index-not-json     anything else that jansson does not read
 *   index-not-object   JSON, but not an object
 *   index-weight-map   no weight_map, or it is not an object
 *   index-shard-name   a shard is not a string, or one that is no file beside the index:
 *                      empty, ".", "..", with '/' or NUL, or of more than 255 bytes
 * err->offset is the place in the text, where there is one. -ENOMEM, mostly: jansson 2.14 does
 * not look whether a string could grow, and may take it for wrong or lose a byte of it.
 *
 * Python reads a few texts that jansson does not: NaN and Infinity, integers beyond 64 bits
 * (signed), numbers beyond a double, lone surrogates. All are index-not-json.
 *
 * Memory: up to 400 bytes for each value, and the strings; a tensor takes about 200.
 */
int wfs_shard_index_parse(const char *text, size_t len, struct wfs_shard_index *ret,
	struct wfs_err *err) WFS_WARN_UNUSED;

/* Free what parse allocated; *index is then empty and may be released again. */
void wfs_shard_index_release(struct wfs_shard_index *index);

/*
 * The metadata of transformers: a new object of total_parameters (elements of all
 * tensors), total_size (bytes of all tensors) and the pairs of `other`, an object or NULL,
 * which is not changed; the values are shared with it. Where other has one of the two
 * keys, the number given here counts.
 *
 * *ret is the caller's (json_decref). -EOVERFLOW: a number beyond INT64_MAX, which jansson
 * cannot hold. -EINVAL: other is not an object. -ENOMEM.
 */
int wfs_shard_index_totals(const json_t *other, uint64_t total_parameters, uint64_t total_size,
	json_t **ret) WFS_WARN_UNUSED;

/*
 * Write an index. `entries` may be in any order; they and `metadata` (an object; NULL:
 * no metadata in the text) are only read. Keys are sorted by code point, as Python sorts
 * str; all but printable ASCII is escaped, beyond U+FFFF as two surrogates; a real has the
 * shortest digits that read back, as repr() writes it. What parse has read comes out as
 * json.dumps writes what json.loads has read. Keys of metadata end at a NUL.
 *
 * On success *ret is the caller's (free), *ret_len bytes and a NUL behind them. The text may be
 * longer than parse would read. -EINVAL with a reason: index-duplicate (a tensor name
 * twice), index-shard-name (as above), index-not-utf8, index-metadata (not an
 * object), index-too-deep. -ENOMEM.
 *
 * Time: n log n comparisons of names.
 */
int wfs_shard_index_build(const struct wfs_index_entry *entries, size_t n, const json_t *metadata,
	char **ret, size_t *ret_len, struct wfs_err *err) WFS_WARN_UNUSED;

#endif
