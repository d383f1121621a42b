/*
 * safetensors.h - read, judge and build the header of a safetensors file.
 *
 * Pure functions over bytes: no file is opened here, and only the header is
 * looked at, never the data behind it. The verdict is that of Python's
 * safetensors 0.8 (`read_metadata`, which deserialize and safe_open share), on
 * every input: what loads there is WFS_SAFETENSORS_VALID here, what does not
 * load is not. Where the README of the format is stricter than the library,
 * the file is valid with a warning.
 *
 * Layout (https://github.com/huggingface/safetensors#format):
 *   8 bytes      N, unsigned, little endian
 *   N bytes      JSON: {"__metadata__": {str: str}, NAME: {"dtype": …, "shape": […], "data_offsets": [b, e]}, …}
 *   the rest     the tensors' bytes; b and e count from its start
 *
 * Any thread may call; nothing blocks but malloc.
 */
#ifndef WFS_SAFETENSORS_H
#define WFS_SAFETENSORS_H

#include "lib/base.h"
#include "lib/dtype.h"
#include "lib/err.h"

/* The largest N that the library reads (100 MB, inclusive). */
#define WFS_SAFETENSORS_MAX_HEADER UINT64_C(100000000)

/* Bytes before the JSON. */
#define WFS_SAFETENSORS_PREFIX 8

enum wfs_safetensors_verdict {
	WFS_SAFETENSORS_VALID,      /* safetensors 0.8 loads it */
	WFS_SAFETENSORS_INCOMPLETE, /* right so far; bytes appended later can make it valid */
	WFS_SAFETENSORS_WRONG,      /* no bytes appended later can make it valid */
};

/* What the README forbids or asks for, and the library does not mind. Bits. */
enum wfs_safetensors_warning {
	WFS_ST_WARN_LEADING_SPACE = 1 << 0,  /* "MUST begin with {" */
	WFS_ST_WARN_PADDING = 1 << 1,        /* trailing white space other than 0x20 */
	WFS_ST_WARN_DUPLICATE = 1 << 2,      /* a tensor name or metadata key twice; the last wins */
	WFS_ST_WARN_NULL_METADATA = 1 << 3,  /* "__metadata__": null */
	WFS_ST_WARN_ENTRY_FORM = 1 << 4,     /* an entry as array, dtype as {"F32": null} */
	WFS_ST_WARN_UNKNOWN_KEY = 1 << 5,    /* a key in an entry other than dtype, shape, data_offsets */
	WFS_ST_WARN_UNALIGNED = 1 << 6,      /* a tensor that does not begin at a multiple of its element size */
	WFS_ST_WARN_COUNT = 7,
};

struct wfs_safetensors_tensor {
	const char *name;   /* UTF-8, unescaped, name_len bytes, no NUL after it; may hold NUL, '/' or nothing */
	uint32_t name_len;  /* bytes */
	uint32_t ndim;      /* number of dimensions; 0 for a scalar */
	uint32_t shape_at;  /* where the '[' of its shape is, bytes from the start of the JSON text */
	uint8_t dtype;      /* enum wfs_dtype */
	uint64_t begin;     /* first byte, from the start of the data */
	uint64_t end;       /* one past the last byte; equal to begin for an empty tensor */
};

/* One pair of __metadata__. Strings as for a tensor's name. */
struct wfs_safetensors_meta {
	const char *key;
	const char *value;
	uint32_t key_len;
	uint32_t value_len;
};

struct wfs_safetensors {
	enum wfs_safetensors_verdict verdict;
	unsigned warnings;   /* set of enum wfs_safetensors_warning; set only when VALID */
	uint64_t header_len; /* N; 0 if the file is shorter than 8 bytes */
	uint64_t data_len;   /* bytes of data that the header promises */
	const char *json;    /* the header's text, borrowed from the caller's buffer */
	/* Sorted by (begin, end), one for each name; NULL unless the header is whole and right. */
	struct wfs_safetensors_tensor *tensors;
	size_t n_tensors;
	struct wfs_safetensors_meta *meta; /* in order of first appearance, one for each key */
	size_t n_meta;
	bool has_meta; /* "__metadata__" was there and an object */
	char *strings; /* private: names and values that had escapes */
};

/*
 * How many bytes of a file wfs_safetensors_parse needs to see: 8 + N, but not
 * more than file_size; 8 (or file_size) where N itself is not to be believed.
 * `head` holds the first min(8, file_size) bytes.
 */
uint64_t wfs_safetensors_need(const uint8_t *head, uint64_t file_size);

/*
 * Judge a file of file_size bytes by its first bytes. `buf` holds at least
 * wfs_safetensors_need() bytes and must outlive *ret, which points into it.
 *
 * Returns 0 with ret->verdict set; where it is not VALID, *err says why:
 *   reason                 verdict       rule of safetensors 0.8
 *   header-too-small       incomplete    fewer than 8 bytes
 *   header-too-large       wrong         N > 100,000,000
 *   header-cut             incomplete    8 + N > file size, and the JSON is right so far
 *   header-not-utf8        wrong         InvalidHeader
 *   header-not-json        wrong         InvalidHeaderDeserialization: not JSON, or too deep
 *   header-not-object      wrong         the same: JSON, but not an object of entries
 *   metadata-invalid       wrong         __metadata__ twice, or not an object of strings
 *   entry-invalid          wrong         an entry without dtype, shape or data_offsets, or of another type
 *   entry-duplicate-key    wrong         dtype, shape or data_offsets twice in one entry
 *   dtype-unknown          wrong
 *   shape-invalid          wrong         not an array of unsigned 64-bit integers
 *   offsets-invalid        wrong         not two unsigned 64-bit integers
 *   offsets-gap            wrong         InvalidOffset: a tensor begins after the end of the one before
 *   offsets-overlap        wrong         InvalidOffset: a tensor begins before it, or ends before it begins
 *   shape-overflow         wrong         ValidationOverflow
 *   shape-misaligned       wrong         MisalignedSlice: elements of 4 or 6 bits that fill no whole byte
 *   shape-mismatch         wrong         TensorInvalidInfo: bytes of shape and dtype != end - begin
 *   data-short             incomplete    MetadataIncompleteBuffer: bytes are missing at the end
 *   data-long              wrong         MetadataIncompleteBuffer: bytes are left over
 * err->offset is the place in the file (8 + place in the JSON) where the text
 * goes wrong; for data-short and data-long where the data should end.
 *
 * -ENOMEM otherwise; *ret is then as after wfs_safetensors_release.
 * Memory: below 64 bytes for each tensor, whatever the header holds.
 */
int wfs_safetensors_parse(const uint8_t *buf, uint64_t file_size, struct wfs_safetensors *ret,
	struct wfs_err *err) WFS_WARN_UNUSED;

/* Free what parse allocated; *st is then empty and may be released again. */
void wfs_safetensors_release(struct wfs_safetensors *st);

/*
 * Write up to `max` dimensions of tensor `t` of `st` to dims[]; returns ndim.
 * Shapes stay in the header's text until somebody asks: an attacker's header
 * may name millions of dimensions.
 */
size_t wfs_safetensors_shape(const struct wfs_safetensors *st,
	const struct wfs_safetensors_tensor *t, uint64_t *dims, size_t max);

/* A shape as JSON, "[2, 3]"; the caller frees *ret. -ENOMEM. */
int wfs_shape_text(const uint64_t *dims, size_t ndim, char **ret) WFS_WARN_UNUSED;

/* The warnings of a set as one line of text, "; " between them, cut to size. */
void wfs_safetensors_warning_text(unsigned warnings, char *buf, size_t size);

/* ---- building ---- */

/* One tensor of a header to be built. */
struct wfs_safetensors_entry {
	const char *name;     /* UTF-8, name_len bytes */
	uint32_t name_len;
	uint32_t ndim;
	const uint64_t *shape; /* ndim dimensions, elements */
	uint8_t dtype;         /* enum wfs_dtype */
	uint64_t begin, end;   /* set by wfs_safetensors_build */
};

/*
 * Build the first 8 + N bytes of a file that holds `entries`, byte for byte as
 * safetensors 0.8 writes them: tensors ordered by dtype descending, then name
 * bytewise (entries[] is sorted into that order, and each begin and end set);
 * __metadata__ first, in the order given, where n_meta > 0; serde_json's
 * escapes; padded with spaces to a multiple of 8.
 *
 * On success *ret_buf is the caller's (free), *ret_len its bytes and
 * *ret_data_len the bytes of data that must follow. -EINVAL with a reason:
 * shape-overflow, shape-misaligned, duplicate-name, name-not-utf8,
 * header-too-large. -ENOMEM.
 */
int wfs_safetensors_build(struct wfs_safetensors_entry *entries, size_t n,
	const struct wfs_safetensors_meta *meta, size_t n_meta, uint8_t **ret_buf, size_t *ret_len,
	uint64_t *ret_data_len, struct wfs_err *err) WFS_WARN_UNUSED;

#endif
