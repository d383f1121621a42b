/*
 * support.h - what unit tests share: directories of their own.
 */
#ifndef WFS_TESTS_SUPPORT_H
#define WFS_TESTS_SUPPORT_H

#include "lib/base.h"

/*
 * Make a new directory under $TMPDIR, or else build/tests/tmp (tests run in the
 * root of the repository). The caller frees the path after wfs_test_rmdir.
 * Never returns NULL: a test that has no place to work in ends the program.
 */
char *wfs_test_mkdir(void);

/* Remove a directory with all that is in it; symbolic links are not followed. */
void wfs_test_rmdir(const char *path);

/* The path "DIR/NAME", name by format; the caller frees it. */
char *wfs_test_path(const char *dir, const char *fmt, ...) WFS_PRINTF(2, 3);

/* A file of exactly these bytes, made or replaced. */
void wfs_test_write(const char *path, const void *bytes, size_t len);

/* All bytes of a file; the caller frees them. */
void *wfs_test_read(const char *path, size_t *ret_len);

#endif
