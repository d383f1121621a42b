/*
 * dtype.h - the 22 element types of safetensors 0.8.
 *
 * The values are in the order of the Rust enum `Dtype` (ascending alignment),
 * because the writer of safetensors sorts tensors by the reverse of it.
 */
#ifndef WFS_DTYPE_H
#define WFS_DTYPE_H

#include "lib/base.h"

enum wfs_dtype {
	WFS_DTYPE_BOOL,
	WFS_DTYPE_F4,
	WFS_DTYPE_F6_E2M3,
	WFS_DTYPE_F6_E3M2,
	WFS_DTYPE_U8,
	WFS_DTYPE_I8,
	WFS_DTYPE_F8_E5M2,
	WFS_DTYPE_F8_E4M3,
	WFS_DTYPE_F8_E8M0,
	WFS_DTYPE_F8_E4M3FNUZ,
	WFS_DTYPE_F8_E5M2FNUZ,
	WFS_DTYPE_I16,
	WFS_DTYPE_U16,
	WFS_DTYPE_F16,
	WFS_DTYPE_BF16,
	WFS_DTYPE_I32,
	WFS_DTYPE_U32,
	WFS_DTYPE_F32,
	WFS_DTYPE_C64,
	WFS_DTYPE_F64,
	WFS_DTYPE_I64,
	WFS_DTYPE_U64,
	WFS_DTYPE_COUNT,
};

/* The name as it stands in a header, e.g. "BF16". Static storage. */
const char *wfs_dtype_name(enum wfs_dtype dtype);

/* Bits of one element: 4, 6, 8, 16, 32 or 64. */
unsigned wfs_dtype_bits(enum wfs_dtype dtype);

/* Case-sensitive. 1 and *ret set if `name` (len bytes) is a dtype, else 0. */
int wfs_dtype_find(const char *name, size_t len, enum wfs_dtype *ret);

#endif
