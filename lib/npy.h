/*
 * npy.h - read, judge and build the header of a NumPy .npy file, and bring its
 * data into the form that safetensors wants: little endian, C order.
 *
 * Pure functions over bytes: no file is opened here. The verdict is that of
 * numpy.load(allow_pickle=False) of NumPy 2.4 on a 64-bit little-endian Linux,
 * except that the list below is refused. Nothing is accepted that NumPy refuses.
 *
 * Layout (numpy/lib/format.py, NEP 1):
 *   6 bytes      "\x93NUMPY"
 *   2 bytes      version, major and minor: 1.0, 2.0 or 3.0
 *   2, or 4      N, unsigned, little endian; 2 bytes in version 1.0, else 4
 *   N bytes      a Python dict: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
 *   the rest     the elements
 * The keys stand in any order; a comma may follow the last one; strings are in
 * either quote; numbers of versions 1.0 and 2.0 may end in Python 2's L.
 *
 * What NumPy takes as an array of these dtypes, and is refused here:
 *   - bytes behind the data (npy-long): NumPy does not look at them;
 *   - in strings: escapes, three quotes, several strings side by side, any
 *     prefix but u and U;
 *   - comments, a backslash at the end of a line, white space other than space,
 *     tab and line feed, a line feed before the dict, a last line of white space
 *     that has no line feed (NumPy itself refuses that in version 3.0);
 *   - a key that is there twice (NumPy: the last counts), parentheses around the
 *     dict, a key, a string, a bool or a number;
 *   - dimensions that are not plain decimal digits: 0x3, 1_0, 00, -0, +3; an L that
 *     does not follow its number at once, or a second one;
 *   - in descr: anything between the kind and its size ('f 4', 'f04', 'f+4'), a
 *     letter by its number ('\t' for int64), a shape ('()f4', '1f4');
 *   - a descr that is no string, but a list or tuple that comes to a plain dtype.
 *
 * Any thread may call; nothing blocks but malloc, and what wfs_npy_to_c calls.
 */
#ifndef WFS_NPY_H
#define WFS_NPY_H

#include <sys/types.h>

#include "lib/base.h"
#include "lib/dtype.h"
#include "lib/err.h"

/* The largest N that NumPy reads of a file that it is not told to trust. */
#define WFS_NPY_MAX_HEADER 10000

/* Dimensions at most (NumPy's NPY_MAXDIMS). */
#define WFS_NPY_MAX_DIMS 64

/* The first bytes of every file. */
#define WFS_NPY_MAGIC "\x93NUMPY"

/* Bytes that say how long the header is, in every version. */
#define WFS_NPY_PREFIX 12

struct wfs_npy {
	enum wfs_dtype dtype;		  /* one with wfs_npy_has_dtype */
	bool big_endian;		  /* false for elements of one byte */
	bool fortran_order;		  /* the first dimension is the fastest, not the last */
	uint32_t ndim;			  /* number of dimensions; 0 for a scalar */
	uint64_t shape[WFS_NPY_MAX_DIMS]; /* elements, ndim of them */
	uint64_t data_at;		  /* first byte of the data, from the start of the file */
	uint64_t data_len;		  /* bytes of data; 0 if a dimension is 0 */
};

/*
 * Whether NumPy has the dtype: BOOL |b1, U8 |u1, I8 |i1, I16 <i2, U16 <u2,
 * F16 <f2, I32 <i4, U32 <u4, F32 <f4, C64 <c8 (complex64), I64 <i8, U64 <u8,
 * F64 <f8. Not BF16, F8_*, F6_* and F4.
 */
bool wfs_npy_has_dtype(enum wfs_dtype dtype);

/*
 * How many bytes from the start of a file wfs_npy_parse needs to see: up to the
 * data, but not more than file_size; WFS_NPY_PREFIX (or file_size) where the
 * length of the header is not to be believed. `head` holds the first head_len
 * bytes, min(WFS_NPY_PREFIX, file_size) or more.
 */
uint64_t wfs_npy_need(const uint8_t *head, size_t head_len, uint64_t file_size);

/*
 * Judge a file of file_size bytes by its first bytes. `buf` holds at least
 * wfs_npy_need() bytes; *ret does not point into it.
 *
 * 0, or -EBADMSG with *ret untouched and the first thing that is wrong:
 *   npy-magic             the file does not begin with "\x93NUMPY"
 *   npy-version           none of 1.0, 2.0 and 3.0
 *   npy-header-too-large  N > WFS_NPY_MAX_HEADER
 *   npy-cut               the file ends within the header, and is right so far
 *   npy-header            not a dict of exactly descr, fortran_order and shape,
 *                         of the form that is described above
 *   npy-object            descr is Python's object: the data are a pickle
 *   npy-structured        descr is of several fields, or has a shape of its own
 *   npy-dtype             a dtype that safetensors does not have (<f16, <c16, <U3,
 *                         |S4, <M8[ns], ...), or that NumPy does not know either
 *   npy-shape             not a tuple of numbers from 0 up; more than
 *                         WFS_NPY_MAX_DIMS; or the dimensions other than 0 make
 *                         2^63 bytes or more, which NumPy refuses, too
 *   npy-short             the data end too early, and all else is right
 *   npy-long              bytes are left over behind the data
 * err->offset is the place in the file: for npy-cut where the file ends, for
 * npy-short and npy-long where the data should end.
 *
 * The spellings of descr: <, >, = or | or none of them, before b1 i1 u1 i2 u2 f2
 * i4 u4 f4 i8 u8 f8 c8 or before one of ? b B h H i I l L q Q p P n N e f d F;
 * and without a sign for the byte order NumPy's names: bool, int8, float32, half,
 * int (of 64 bits), csingle, ... No sign, = and | mean little endian.
 */
int wfs_npy_parse(const uint8_t *buf, uint64_t file_size, struct wfs_npy *ret,
	struct wfs_err *err) WFS_WARN_UNUSED;

/*
 * Build the bytes before the data, byte for byte as numpy.save writes them for a
 * little-endian array in C order: spaces for a first dimension of up to 21 digits,
 * then up to a multiple of 64 bytes, and a line feed. Always version 1.0: a
 * header of WFS_NPY_MAX_DIMS dimensions has less than 2 KiB, and NumPy takes 2.0
 * from 64 KiB on. `shape` holds ndim dimensions, elements.
 *
 * On success *ret_buf is the caller's (free) and *ret_len its bytes. -EINVAL where
 * NumPy can have no such array: by dtype, by ndim or by size (see npy-shape).
 * -ENOMEM.
 */
int wfs_npy_build(enum wfs_dtype dtype, const uint64_t *shape, uint32_t ndim, uint8_t **ret_buf,
	size_t *ret_len) WFS_WARN_UNUSED;

/* ---- data ---- */

/*
 * Turn the bytes of each of n elements round, in place. element_bytes is 1, 2, 4
 * or 8; a C64 is two elements of 4 bytes. `buf` need not be aligned.
 */
void wfs_npy_swap(void *buf, size_t n, unsigned element_bytes);

/*
 * Write the data_len bytes of the array in C order and little endian, first to
 * last. *npy must be what wfs_npy_parse made of the file.
 *
 * read_at: as pread on the file: up to len bytes from `offset` (from the start of the
 * file) to buf; how many they were, or -errno. It is called again for the rest of
 * what it did not read. append: all of len bytes, 0 or -errno.
 *
 * 0; -EIO if the file ends too early, -ENOMEM, or what read_at or append returned.
 * What was written before stays written. Blocks as they do.
 *
 * Memory: below 33 MiB, and less for small arrays. An array in C order is read once,
 * first to last. One in Fortran order is read in rounds, each of them in ascending
 * order: those parts of its columns that belong to the next bytes of output, up to
 * 32 MiB. A part is a read of its own; where less than 4 KiB lie between two, they
 * are read together, up to 256 KiB, with what lies between. The worst that can
 * happen is that each round so reads all of the file: shapes like (2, 2, 2, ...).
 * The kernel does not read ahead for such reads. 1 GiB of (16384, 16384) takes 2 s
 * where the file is in its cache and 12 s where it is not, so that the caller does
 * well to bring it there (posix_fadvise, POSIX_FADV_WILLNEED).
 */
int wfs_npy_to_c(const struct wfs_npy *npy,
	ssize_t (*read_at)(void *ctx, void *buf, size_t len, uint64_t offset),
	int (*append)(void *ctx, const void *buf, size_t len), void *ctx) WFS_WARN_UNUSED;

#endif
