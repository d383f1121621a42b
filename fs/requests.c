#include "fs/requests.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "lib/store_time.h"

/* ---- the memory ---- */

static struct wfs_requests *map(int fd, int prot)
{
	void *p = mmap(NULL, sizeof(struct wfs_requests), prot, MAP_SHARED, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

struct wfs_requests *wfs_requests_new(void)
{
	/* It stays open for as long as the process lives: that is how it is found. */
	int fd = memfd_create(WFS_REQUESTS_NAME, MFD_CLOEXEC);
	struct wfs_requests *r;

	if (fd < 0)
		return NULL;
	r = ftruncate(fd, sizeof(*r)) == 0 ? map(fd, PROT_READ | PROT_WRITE) : NULL;
	if (r)
		r->magic = WFS_REQUESTS_MAGIC;
	else
		close(fd);
	return r;
}

static struct wfs_requests *try_map(int dir_fd, const char *name)
{
	WFS_AUTO_CLOSE int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
	struct wfs_requests *r;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) != 0 || st.st_size != (off_t)sizeof(*r))
		return NULL;
	/* The driver's own, which nobody can make shorter while it is looked at: it runs the same code. */
	r = map(fd, PROT_READ);
	if (r && r->magic == WFS_REQUESTS_MAGIC)
		return r;
	wfs_requests_free(r);
	return NULL;
}

struct wfs_requests *wfs_requests_of(pid_t pid)
{
	struct wfs_requests *found = NULL;
	char path[64], to[128];
	struct dirent *e;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	while (dir && !found && (e = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), e->d_name, to, sizeof(to) - 1);

		to[WFS_MAX(n, 0)] = '\0';
		if (strncmp(to, "/memfd:" WFS_REQUESTS_NAME, strlen("/memfd:" WFS_REQUESTS_NAME)) == 0)
			found = try_map(dirfd(dir), e->d_name);
	}
	if (dir)
		closedir(dir);
	return found;
}

void wfs_requests_free(struct wfs_requests *r)
{
	if (r)
		munmap(r, sizeof(*r));
}

/* ---- one request ---- */

int64_t wfs_requests_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return wfs_ns(&now);
}

void wfs_request_begin(struct wfs_request_slot *slot, const void *request, size_t size)
{
	const struct fuse_in_header *in = request;

	if (size < sizeof(*in))
		return;
	atomic_store_explicit(&slot->ino, in->nodeid, memory_order_relaxed);
	atomic_store_explicit(&slot->opcode, in->opcode, memory_order_relaxed);
	atomic_store_explicit(&slot->caller, in->pid, memory_order_relaxed);
	atomic_store_explicit(&slot->since_ns, wfs_requests_now(), memory_order_release);
}

bool wfs_request_look(struct wfs_request_slot *slot, struct wfs_request *ret)
{
	ret->since_ns = atomic_load_explicit(&slot->since_ns, memory_order_acquire);
	ret->ino = atomic_load_explicit(&slot->ino, memory_order_relaxed);
	ret->opcode = atomic_load_explicit(&slot->opcode, memory_order_relaxed);
	ret->caller = atomic_load_explicit(&slot->caller, memory_order_relaxed);
	ret->tid = atomic_load_explicit(&slot->tid, memory_order_relaxed);
	atomic_thread_fence(memory_order_acquire);
	return ret->since_ns != 0 && ret->since_ns == atomic_load(&slot->since_ns);
}

/* ---- words ---- */

static const char *const opcodes[] = {
	[FUSE_LOOKUP] = "LOOKUP", [FUSE_FORGET] = "FORGET", [FUSE_GETATTR] = "GETATTR",
	[FUSE_SETATTR] = "SETATTR", [FUSE_READLINK] = "READLINK", [FUSE_SYMLINK] = "SYMLINK",
	[FUSE_MKNOD] = "MKNOD", [FUSE_MKDIR] = "MKDIR", [FUSE_UNLINK] = "UNLINK", [FUSE_RMDIR] = "RMDIR",
	[FUSE_RENAME] = "RENAME", [FUSE_LINK] = "LINK", [FUSE_OPEN] = "OPEN", [FUSE_READ] = "READ",
	[FUSE_WRITE] = "WRITE", [FUSE_STATFS] = "STATFS", [FUSE_RELEASE] = "RELEASE",
	[FUSE_FSYNC] = "FSYNC", [FUSE_SETXATTR] = "SETXATTR", [FUSE_GETXATTR] = "GETXATTR",
	[FUSE_LISTXATTR] = "LISTXATTR", [FUSE_REMOVEXATTR] = "REMOVEXATTR", [FUSE_FLUSH] = "FLUSH",
	[FUSE_INIT] = "INIT", [FUSE_OPENDIR] = "OPENDIR", [FUSE_READDIR] = "READDIR",
	[FUSE_RELEASEDIR] = "RELEASEDIR", [FUSE_FSYNCDIR] = "FSYNCDIR", [FUSE_ACCESS] = "ACCESS",
	[FUSE_CREATE] = "CREATE", [FUSE_INTERRUPT] = "INTERRUPT", [FUSE_IOCTL] = "IOCTL",
	[FUSE_BATCH_FORGET] = "BATCH_FORGET", [FUSE_FALLOCATE] = "FALLOCATE",
	[FUSE_READDIRPLUS] = "READDIRPLUS", [FUSE_RENAME2] = "RENAME", [FUSE_LSEEK] = "LSEEK",
	[FUSE_COPY_FILE_RANGE] = "COPY_FILE_RANGE", [FUSE_SYNCFS] = "SYNCFS", [51] = "TMPFILE",
	[52] = "STATX",
};

const char *wfs_request_name(unsigned opcode)
{
	return opcode < WFS_ARRAY_SIZE(opcodes) && opcodes[opcode] ? opcodes[opcode] : "a request";
}

/* The first line of a file of /proc; empty where it cannot be read. */
static void read_line(const char *path, char *line, size_t size)
{
	WFS_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, line, size - 1) : 0;

	line[WFS_MAX(n, 0)] = '\0';
	line[strcspn(line, "\n")] = '\0';
}

void wfs_request_caller_name(const struct wfs_request *r, char name[32])
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%u/comm", r->caller);
	name[0] = '\0';
	if (r->caller)
		read_line(path, name, 32);
}

void wfs_request_describe(const struct wfs_request *r, const char *path, char text[WFS_REQUEST_TEXT])
{
	char caller[64] = "the kernel", name[32];

	wfs_request_caller_name(r, name);
	if (r->caller)
		snprintf(caller, sizeof(caller), "process %u (%s)", r->caller, *name ? name : "gone");
	snprintf(text, WFS_REQUEST_TEXT, "%s of inode %llu%s%.250s, by %s", wfs_request_name(r->opcode),
		(unsigned long long)r->ino, path ? " " : "", path ? path : "", caller);
}

/* ---- what it waits for ---- */

static const struct {
	long number;
	const char *name;
	bool has_fd; /* as its first argument */
} calls[] = {
	{ SYS_read, "read", true }, { SYS_write, "write", true }, { SYS_pread64, "pread", true },
	{ SYS_pwrite64, "pwrite", true }, { SYS_preadv, "preadv", true }, { SYS_pwritev, "pwritev", true },
	{ SYS_readv, "readv", true }, { SYS_splice, "splice", true }, { SYS_writev, "writev", true }, { SYS_fsync, "fsync", true },
	{ SYS_fdatasync, "fdatasync", true }, { SYS_syncfs, "syncfs", true },
	{ SYS_fallocate, "fallocate", true }, { SYS_ftruncate, "ftruncate", true },
	{ SYS_sync_file_range, "sync_file_range", true },
	{ SYS_copy_file_range, "copy_file_range", true }, { SYS_ioctl, "ioctl", true },
	{ SYS_fcntl, "fcntl", true }, { SYS_flock, "flock", true }, { SYS_lseek, "lseek", true },
	{ SYS_fstatfs, "fstatfs", true }, { SYS_openat, "openat", false },
	{ SYS_unlinkat, "unlinkat", false }, { SYS_mkdirat, "mkdirat", false },
	{ SYS_utimensat, "utimensat", false }, { SYS_newfstatat, "fstatat", false },
	{ SYS_statx, "statx", false }, { SYS_mmap, "mmap", false }, { SYS_munmap, "munmap", false },
};

static void describe_call(pid_t pid, long number, unsigned long first, char text[WFS_REQUEST_TEXT])
{
	char path[64], file[256] = "";
	ssize_t n;

	for (size_t i = 0; i < WFS_ARRAY_SIZE(calls); i++) {
		if (calls[i].number != number)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/fd/%lu", (int)pid, first);
		n = calls[i].has_fd ? readlink(path, file, sizeof(file) - 1) : 0;
		file[WFS_MAX(n, 0)] = '\0';
		snprintf(text, WFS_REQUEST_TEXT, "the disk: %s%s%s", calls[i].name, *file ? " of " : "", file);
		return;
	}
	snprintf(text, WFS_REQUEST_TEXT, "system call %ld", number);
}

void wfs_request_waits_for(const struct wfs_requests *all, pid_t pid, const struct wfs_request *r,
	char text[WFS_REQUEST_TEXT])
{
	char path[64], line[256], wchan[64];
	unsigned long first = 0;
	long number;
	size_t len;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", (int)pid, r->tid);
	read_line(path, line, sizeof(line));
	snprintf(path, sizeof(path), "/proc/%d/task/%d/wchan", (int)pid, r->tid);
	read_line(path, wchan, sizeof(wchan));
	if (!*line)
		snprintf(text, WFS_REQUEST_TEXT, "what is not known");
	else if (strncmp(line, "running", 7) == 0)
		snprintf(text, WFS_REQUEST_TEXT, "nothing: it runs");
	else if (sscanf(line, "%ld %lx", &number, &first) < 1 || number < 0)
		snprintf(text, WFS_REQUEST_TEXT, "a page of a mapping");
	else if (number == SYS_futex)
		snprintf(text, WFS_REQUEST_TEXT, "%s", first == atomic_load(&all->db_lock)
			? "the database's lock" : "a lock, or another thread");
	else
		describe_call(pid, number, first, text);
	len = strlen(text);
	if (*wchan && strcmp(wchan, "0") != 0)
		snprintf(text + len, WFS_REQUEST_TEXT - len, " (in %s)", wchan);
}
