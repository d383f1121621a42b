/*
 * file.h - regular files in use: their bytes, dirty or sealed.
 *
 * One struct wfs_file exists for each regular inode that somebody uses. It
 * holds the content as it is now; readers take a reference to that content for
 * the length of one read, so that sealing or unsealing under them changes
 * nothing that they see. Order of use:
 *
 *     wfs_file_get → wfs_file_open → read, write, … → wfs_file_close → wfs_file_unref
 *
 * wfs_file_truncate and the reading functions work without open.
 *
 * A sealed file becomes dirty at its first write, not when it is opened
 * (DESIGN §4.5): in place where nobody else needs its data file, else by a
 * copy. A writer that is told 0 has its bytes in the data file's page cache:
 * they survive the process, and the power after wfs_file_sync.
 *
 * Locks: file->lock, then the database's. No lock is held across I/O on data.
 */
#ifndef WFS_FILE_H
#define WFS_FILE_H

#include <sys/types.h>

#include "lib/base.h"
#include "lib/err.h"
#include "lib/name.h"
#include "lib/safetensors.h"
#include "lib/store.h"

struct wfs_file;

/* The file of inode `ino`; wfs_file_unref gives it back. -ENOENT, -EISDIR, -EINVAL (no regular file), -EIO (damaged). */
int wfs_file_get(struct wfs_store *s, uint64_t ino, struct wfs_file **ret);
void wfs_file_unref(struct wfs_file *f);

uint64_t wfs_file_ino(const struct wfs_file *f);

/* Count a handle. `writes`: it may write; stops a seal that is under way. */
void wfs_file_open(struct wfs_file *f, bool writes);
/* The handle is gone. Returns true if the file is dirty and nobody may write it now: seal it soon. */
bool wfs_file_close(struct wfs_file *f, bool writes);

/*
 * Where programs write it themselves: did its bytes change since the last call? Size
 * and time of the data file tell. The gate then has to look again.
 */
bool wfs_file_was_written(struct wfs_file *f);

/* True if the file is dirty now. */
bool wfs_file_is_dirty(struct wfs_file *f);

/* How its content is kept now: wfs_content_layout, and in how many extents. Constant text. */
const char *wfs_file_layout(struct wfs_file *f, size_t *ret_extents);

/* Bytes now. */
int wfs_file_size(struct wfs_file *f, uint64_t *ret);

/* Like pread/pwrite: bytes done (less only at the end of the file, or on a full disk), or -errno. */
ssize_t wfs_file_read(struct wfs_file *f, void *buf, size_t len, uint64_t offset);
ssize_t wfs_file_write(struct wfs_file *f, const void *buf, size_t len, uint64_t offset);

/* The content as it is now (lib/content.h), with a reference: for one read, or one look. */
struct wfs_content;
struct wfs_content *wfs_file_content(struct wfs_file *f);

int wfs_file_truncate(struct wfs_file *f, uint64_t size);
/* `mode` as fallocate(2); -EOPNOTSUPP as the disk below. */
int wfs_file_fallocate(struct wfs_file *f, int mode, uint64_t offset, uint64_t len);
/* SEEK_DATA or SEEK_HOLE: the offset found, or -ENXIO. */
int64_t wfs_file_seek(struct wfs_file *f, uint64_t offset, int whence);

/* Bytes, size and names survive a power cut once this has returned 0. */
int wfs_file_sync(struct wfs_file *f);

/*
 * For programs that use the data file itself (passthrough, DESIGN §6): `pin` says
 * that one does from now on, to read or map it, to write it, until `unpin`. Returns
 *
 *     1         wfs_file_pinned_fd is the data file, for as long as any pin lasts
 *     0         nobody has it pinned, and the content is composed, in the database, or sealed
 *               and to be written: serve it with wfs_file_read and wfs_file_write
 *     -ETXTBSY  it is pinned, and cannot be written where it is
 *
 * While a file is pinned, its bytes stay in that data file: sealing leaves them
 * there, and what would move them (a truncation, a write to shared bytes) fails with
 * -ETXTBSY. One thing does move them: a clone into an empty file that nobody can read
 * (cp(1) has just made it). Its data file is closed off (writing it fails with EPERM);
 * who else comes before the last pin is gone has the bytes copied there. Only for
 * stores of wfs_store_use_directly.
 */
int wfs_file_pin(struct wfs_file *f, bool reads, bool writes);
/* Give a program that has cloned into the file a moment to close it, as cp(1) does: then nothing has to be copied. */
void wfs_file_wait_for_clone(struct wfs_file *f);
/* True if the file is dirty and nobody may write or uses it now: seal it soon. `reads` as in pin. */
bool wfs_file_unpin(struct wfs_file *f, bool reads);
/* A new descriptor, to read, of the data file that is pinned; the caller closes it. */
int wfs_file_pinned_fd(struct wfs_file *f);

/*
 * Copy bytes between two files (or within one, not overlapping). Where the
 * whole of `in` goes to an empty `out`, the manifest is shared and nothing is
 * copied (lib/clone.h). Returns bytes done, 0 at the end of `in`, or -errno.
 */
ssize_t wfs_file_copy(struct wfs_file *in, uint64_t in_off, struct wfs_file *out, uint64_t out_off,
	uint64_t len);

/*
 * The header of a safetensors file, whatever its name. `*ret_buf` (free) holds
 * the bytes that *ret points into. 0 with ret->verdict set, or -errno.
 */
int wfs_file_header(struct wfs_file *f, uint8_t **ret_buf, struct wfs_safetensors *ret,
	struct wfs_err *err);

/* One object of a sealed file's manifest. */
struct wfs_piece {
	uint64_t offset;  /* in the file */
	uint64_t length;  /* bytes, > 0 */
	char digest[40];  /* "xxh3:…" */
	uint64_t object;  /* id in table object */
	uint64_t refs;    /* how often manifests name it */
};

/*
 * The pieces of a sealed inode in order; the caller frees *ret. 0 pieces for an
 * empty file; -EBUSY if it is dirty.
 */
int wfs_file_pieces(struct wfs_store *s, uint64_t ino, struct wfs_piece **ret, size_t *ret_n);

#endif
