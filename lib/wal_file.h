/*
 * wal_file.h - the database's log, written with one system call a transaction.
 *
 * SQLite writes each page of a transaction to its log with two writes: 24 bytes
 * that head the frame, then the page (https://www.sqlite.org/fileformat2.html,
 * section 4.1). This VFS keeps them in memory and writes them together when the
 * frame that commits is complete, before SQLite tells readers of it: the order
 * of what others see is as without it, and so are errors (a commit that does not
 * reach the file fails). All other files are those of the default VFS.
 *
 * Only for a connection whose database is in WAL mode: a process that reads the
 * log needs nothing of this.
 */
#ifndef WFS_WAL_FILE_H
#define WFS_WAL_FILE_H

/*
 * Register the VFS, once for the process; its name, for sqlite3_open_v2. NULL
 * where SQLite refuses it: the default VFS does the same, slower.
 */
const char *wfs_wal_vfs(void);

/*
 * Write the frames of the log `fd` again, and sync them: after a sync that failed the kernel takes
 * for written what is not. Only where every one of at least `min_frames` frames still has
 * its checksum: else -EIO. Nobody may write the log meanwhile. A log without a
 * whole frame is success where none is asked for.
 */
int wfs_wal_rewrite(int fd, int min_frames);

#endif
