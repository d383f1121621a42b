/* Before any header: the functions with 64 in their names are to be seen as they are. */
#undef _FILE_OFFSET_BITS
#undef _FORTIFY_SOURCE
#define _LARGEFILE64_SOURCE

#include "tests/faults/fault.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#ifndef FAULT_PRELOAD
#include <jansson.h>
#include <sqlite3.h>
#endif

#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wmissing-declarations"
#pragma GCC diagnostic ignored "-Wnonnull-compare"

static struct fault_plan own_plan;
static struct fault_plan *plan = &own_plan;
static _Atomic uint64_t calls_of[32]; /* by kind */

/* For a person: who made the call that fails? */
static void show_place(void)
{
	uint32_t kinds = atomic_exchange(&plan->kinds, 0);
	void *frames[24];

	if (getenv("WEIGHTFS_FAULT_LOG"))
		backtrace_symbols_fd(frames, backtrace(frames, 24), STDERR_FILENO);
	atomic_store(&plan->kinds, kinds);
}

#ifndef FAULT_PRELOAD
static struct fault_places *places;
extern const char __executable_start[], etext[]; /* the linker's: this program's code is between them */

#define DEEP 8 /* of functions of this program, with three of this file */

static void note_place(enum fault_kind kind)
{
	static _Thread_local bool busy; /* what is called here may allocate */
	uint64_t place = 0xcbf29ce484222325;
	void *frames[48];
	int n, own = 0;

	if (!places || busy || places->n == FAULT_MOST_PLACES)
		return;
	busy = true;
	n = backtrace(frames, 48);
	for (int i = 0; i < n && own < DEEP; i++) {
		const char *at = frames[i];

		if (at < __executable_start || at >= etext)
			continue; /* SQLite's own ways to a call are many */
		place = (place ^ (uint64_t)(at - __executable_start)) * 0x100000001b3;
		own++;
	}
	places->list[places->n++] = (struct fault_place){ kind, place };
	busy = false;
}
#else
static void note_place(enum fault_kind kind)
{
	(void)kind;
}
#endif

/* Is this the call that fails? */
static bool fails(enum fault_kind kind)
{
	uint64_t call;

	if (!(atomic_load(&plan->kinds) & kind))
		return false;
	atomic_fetch_add(&calls_of[__builtin_ctz(kind)], 1);
	call = atomic_fetch_add(&plan->calls, 1) + 1;
	if (plan->n == 0)
		note_place(kind);
	if (plan->n == 0 || call < plan->n || (call > plan->n && !plan->forever))
		return false;
	if (atomic_fetch_add(&plan->hits, 1) == 0)
		show_place();
	errno = (int)plan->error;
	return true;
}

static void *next_of(const char *name)
{
	void *f = dlsym(RTLD_NEXT, name);

	if (!f)
		abort();
	return f;
}

/* The function that this one stands before. */
#define NEXT(name)                                                \
	({                                                        \
		static __typeof__(&(name)) next_;                 \
		if (!next_)                                       \
			next_ = (__typeof__(next_))next_of(#name); \
		next_;                                            \
	})

/* ---- what a sync that fails loses ---- */

/* Bytes of a file before a write that was not synced yet. */
struct undo {
	struct undo *before;
	dev_t dev;
	ino_t ino;
	off64_t offset;
	size_t len;
	uint8_t bytes[];
};

static struct undo *undos;
static pthread_mutex_t undo_lock = PTHREAD_MUTEX_INITIALIZER;

static void remember(int fd, off64_t offset, size_t len)
{
	struct undo *u;
	struct stat st;

	if (!plan->loses || !atomic_load(&plan->kinds) || fstat(fd, &st) != 0)
		return;
	u = mmap(NULL, sizeof(*u) + len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (u == MAP_FAILED)
		abort();
	u->dev = st.st_dev;
	u->ino = st.st_ino;
	u->offset = offset;
	u->len = len;
	/* What is behind the end, or cannot be read, is zeros. */
	if (NEXT(pread64)(fd, u->bytes, len, offset) < 0)
		u->len = 0;
	pthread_mutex_lock(&undo_lock);
	u->before = undos;
	undos = u;
	pthread_mutex_unlock(&undo_lock);
}

/* Forget what was written to the file, on the disk now; or lose it. */
static void settle(int fd, bool lose)
{
	struct undo **p = &undos;
	struct stat st;
	char path[64];
	int out = -1;

	if (!plan->loses || fstat(fd, &st) != 0)
		return;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (lose)
		out = NEXT(open64)(path, O_WRONLY | O_CLOEXEC);
	pthread_mutex_lock(&undo_lock);
	while (*p) {
		struct undo *u = *p;
		size_t len = u->len;

		if (u->dev != st.st_dev || u->ino != st.st_ino) {
			p = &u->before;
			continue;
		}
		/* What was cut off since does not come back. */
		if (u->offset < st.st_size && (off64_t)len > st.st_size - u->offset)
			len = (size_t)(st.st_size - u->offset);
		if (out >= 0 && u->offset < st.st_size && NEXT(pwrite64)(out, u->bytes, len, u->offset) < 0)
			abort();
		*p = u->before;
		munmap(u, sizeof(*u) + u->len);
	}
	pthread_mutex_unlock(&undo_lock);
	if (out >= 0)
		close(out);
}

/* ---- the plan ---- */

void fault_arm(const struct fault_plan *wanted)
{
	own_plan.error = wanted->error;
	own_plan.n = wanted->n;
	own_plan.forever = wanted->forever;
	own_plan.loses = wanted->loses;
	own_plan.halves = wanted->halves;
	for (unsigned i = 0; i < 32; i++)
		atomic_store(&calls_of[i], 0);
	atomic_store(&own_plan.calls, 0);
	atomic_store(&own_plan.hits, 0);
	atomic_store(&own_plan.kinds, wanted->kinds);
}

#ifndef FAULT_PRELOAD
void fault_note_places(struct fault_places *wanted)
{
	places = wanted;
}
#endif

uint64_t fault_disarm(void)
{
	atomic_store(&own_plan.kinds, 0);
#ifndef FAULT_PRELOAD
	places = NULL;
#endif
	return atomic_load(&own_plan.hits);
}

static uint32_t paused;

void fault_pause(void)
{
	paused = atomic_exchange(&own_plan.kinds, 0);
}

void fault_resume(void)
{
	atomic_store(&own_plan.kinds, paused);
}

uint64_t fault_hits(void)
{
	return atomic_load(&own_plan.hits);
}

uint64_t fault_calls_of(uint32_t kinds)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < 32; i++)
		if (kinds >> i & 1)
			sum += atomic_load(&calls_of[i]);
	return sum;
}

/* ---- writing ---- */

/* Not the kernel's channel to the driver, nor a terminal. */
static bool is_file(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t offset)
{
	remember(fd, offset, len);
	if (!fails(FAULT_WRITE))
		return NEXT(pwrite64)(fd, buf, len, offset);
	return plan->halves && len > 1 ? NEXT(pwrite64)(fd, buf, len / 2, offset) : -1;
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t offset)
{
	return pwrite64(fd, buf, len, offset);
}

ssize_t write(int fd, const void *buf, size_t len)
{
	if (!is_file(fd) || !fails(FAULT_WRITE))
		return NEXT(write)(fd, buf, len);
	return plan->halves && len > 1 ? NEXT(write)(fd, buf, len / 2) : -1;
}

ssize_t copy_file_range(int in, off64_t *in_off, int out, off64_t *out_off, size_t len, unsigned flags)
{
	return fails(FAULT_WRITE) ? -1 : NEXT(copy_file_range)(in, in_off, out, out_off, len, flags);
}

int ftruncate64(int fd, off64_t len)
{
	return fails(FAULT_WRITE) ? -1 : NEXT(ftruncate64)(fd, len);
}

int ftruncate(int fd, off_t len)
{
	return ftruncate64(fd, len);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t len)
{
	return fails(FAULT_WRITE) ? -1 : NEXT(fallocate64)(fd, mode, offset, len);
}

int posix_fallocate64(int fd, off64_t offset, off64_t len)
{
	return fails(FAULT_WRITE) ? errno : NEXT(posix_fallocate64)(fd, offset, len);
}

static int failed(void)
{
	errno = (int)plan->error;
	return -1;
}

int fsync(int fd)
{
	bool lost = fails(FAULT_SYNC);

	settle(fd, lost);
	return lost ? failed() : NEXT(fsync)(fd);
}

int fdatasync(int fd)
{
	bool lost = fails(FAULT_SYNC);

	settle(fd, lost);
	return lost ? failed() : NEXT(fdatasync)(fd);
}

/* ---- reading ---- */

ssize_t pread64(int fd, void *buf, size_t len, off64_t offset)
{
	return fails(FAULT_READ) ? -1 : NEXT(pread64)(fd, buf, len, offset);
}

ssize_t pread(int fd, void *buf, size_t len, off_t offset)
{
	return pread64(fd, buf, len, offset);
}

ssize_t read(int fd, void *buf, size_t len)
{
	return is_file(fd) && fails(FAULT_READ) ? -1 : NEXT(read)(fd, buf, len);
}

/* What a compiler calls where it knows the size of the buffer. */
ssize_t __pread64_chk(int fd, void *buf, size_t len, off64_t offset, size_t room)
{
	return len <= room ? pread64(fd, buf, len, offset) : -1;
}

ssize_t __read_chk(int fd, void *buf, size_t len, size_t room)
{
	return len <= room ? read(fd, buf, len) : -1;
}

struct dirent64 *readdir64(DIR *dir)
{
	return fails(FAULT_READ) ? NULL : NEXT(readdir64)(dir);
}

/* ---- names ---- */

#define MODE_OF(flags, last)                                                        \
	({                                                                          \
		mode_t mode_ = 0;                                                   \
		va_list ap_;                                                        \
		va_start(ap_, last);                                                \
		if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE)        \
			mode_ = va_arg(ap_, mode_t);                                \
		va_end(ap_);                                                        \
		mode_;                                                              \
	})

int open64(const char *path, int flags, ...)
{
	mode_t mode = MODE_OF(flags, flags);

	return fails(FAULT_NAME) ? -1 : NEXT(open64)(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
	return open64(path, flags, MODE_OF(flags, flags));
}

int openat64(int dir, const char *path, int flags, ...)
{
	mode_t mode = MODE_OF(flags, flags);

	return fails(FAULT_NAME) ? -1 : NEXT(openat64)(dir, path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...)
{
	return openat64(dir, path, flags, MODE_OF(flags, flags));
}

int __open64_2(const char *path, int flags)
{
	return open64(path, flags);
}

int __openat64_2(int dir, const char *path, int flags)
{
	return openat64(dir, path, flags);
}

int mkdir(const char *path, mode_t mode)
{
	return fails(FAULT_NAME) ? -1 : NEXT(mkdir)(path, mode);
}

int mkdirat(int dir, const char *path, mode_t mode)
{
	return fails(FAULT_NAME) ? -1 : NEXT(mkdirat)(dir, path, mode);
}

int unlink(const char *path)
{
	return fails(FAULT_NAME) ? -1 : NEXT(unlink)(path);
}

int unlinkat(int dir, const char *path, int flags)
{
	return fails(FAULT_NAME) ? -1 : NEXT(unlinkat)(dir, path, flags);
}

int rename(const char *from, const char *to)
{
	return fails(FAULT_NAME) ? -1 : NEXT(rename)(from, to);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
	return fails(FAULT_NAME) ? -1 : NEXT(renameat)(from_dir, from, to_dir, to);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
	return fails(FAULT_NAME) ? -1 : NEXT(linkat)(from_dir, from, to_dir, to, flags);
}

/* ---- looking ---- */

int fstatat64(int dir, const char *path, struct stat64 *st, int flags)
{
	return fails(FAULT_LOOK) ? -1 : NEXT(fstatat64)(dir, path, st, flags);
}

int stat64(const char *path, struct stat64 *st)
{
	return fails(FAULT_LOOK) ? -1 : NEXT(stat64)(path, st);
}

int fstat64(int fd, struct stat64 *st)
{
	return fails(FAULT_LOOK) ? -1 : NEXT(fstat64)(fd, st);
}

int fstatfs64(int fd, struct statfs64 *st)
{
	return fails(FAULT_LOOK) ? -1 : NEXT(fstatfs64)(fd, st);
}

int fstatvfs64(int fd, struct statvfs64 *st)
{
	return fails(FAULT_LOOK) ? -1 : NEXT(fstatvfs64)(fd, st);
}

int utimensat(int dir, const char *path, const struct timespec times[2], int flags)
{
	return fails(FAULT_LOOK) ? -1 : NEXT(utimensat)(dir, path, times, flags);
}

int flock(int fd, int how)
{
	return fails(FAULT_LOOK) ? -1 : NEXT(flock)(fd, how);
}

int fcntl64(int fd, int cmd, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, cmd);
	arg = va_arg(ap, void *);
	va_end(ap);
	/* SQLite waits 10 s for a lock that cannot be had, for each. */
	if (cmd == F_SETLK)
		return NEXT(fcntl64)(fd, cmd, arg);
	/* A lease that cannot be given back: the kernel has no such case, and its signal would end the process. */
	if (cmd == F_SETLEASE && (intptr_t)arg == F_UNLCK)
		return NEXT(fcntl64)(fd, cmd, arg);
	return fails(FAULT_LOOK) ? -1 : NEXT(fcntl64)(fd, cmd, arg);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	return fails(FAULT_LOOK) ? -1 : NEXT(ioctl)(fd, request, arg);
}

/* ---- memory ---- */

void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t offset)
{
	return fails(FAULT_MAP) ? MAP_FAILED : NEXT(mmap64)(addr, len, prot, flags, fd, offset);
}

#ifdef FAULT_PRELOAD

#ifndef FAULT_NO_MALLOC /* a sanitizer has its own */
void *__libc_malloc(size_t len);
void *__libc_calloc(size_t n, size_t len);
void *__libc_realloc(void *p, size_t len);

void *malloc(size_t len)
{
	return fails(FAULT_ALLOC) ? NULL : __libc_malloc(len);
}

void *calloc(size_t n, size_t len)
{
	return fails(FAULT_ALLOC) ? NULL : __libc_calloc(n, len);
}

void *realloc(void *p, size_t len)
{
	return len > 0 && fails(FAULT_ALLOC) ? NULL : __libc_realloc(p, len);
}

#endif

/* Only the driver's calls count, not those of what it starts. */
__attribute__((constructor)) static void take_plan(void)
{
	const char *path = getenv("WEIGHTFS_FAULT_PLAN");
	int fd = path ? NEXT(open64)(path, O_RDWR | O_CLOEXEC) : -1;
	void *page;

	if (fd < 0 || strcmp(program_invocation_short_name, "weightfs") != 0)
		return;
	page = NEXT(mmap64)(NULL, sizeof(*plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (page != MAP_FAILED)
		plan = page;
}

#else

static atomic_long live;

long fault_live_allocations(void)
{
	return atomic_load(&live);
}

void *__real_malloc(size_t len);
void *__real_calloc(size_t n, size_t len);
void *__real_realloc(void *p, size_t len);
void *__real_aligned_alloc(size_t align, size_t len);
void __real_free(void *p);
char *__real_strdup(const char *s);
char *__real_strndup(const char *s, size_t n);
char *__real_realpath(const char *path, char *resolved);
int __real_vasprintf(char **ret, const char *fmt, va_list ap);
FILE *__real_fopen64(const char *path, const char *mode);

static void *count(void *p)
{
	if (p)
		atomic_fetch_add(&live, 1);
	return p;
}

void *__wrap_malloc(size_t len)
{
	return fails(FAULT_ALLOC) ? NULL : count(__real_malloc(len));
}

void *__wrap_calloc(size_t n, size_t len)
{
	return fails(FAULT_ALLOC) ? NULL : count(__real_calloc(n, len));
}

void *__wrap_realloc(void *p, size_t len)
{
	void *grown;

	if (fails(FAULT_ALLOC))
		return NULL;
	grown = __real_realloc(p, len);
	return p ? grown : count(grown);
}

void *__wrap_reallocarray(void *p, size_t n, size_t len)
{
	size_t all;

	if (__builtin_mul_overflow(n, len, &all))
		return NULL;
	return __wrap_realloc(p, all);
}

void *__wrap_aligned_alloc(size_t align, size_t len)
{
	return fails(FAULT_ALLOC) ? NULL : count(__real_aligned_alloc(align, len));
}

void __wrap_free(void *p)
{
	if (p)
		atomic_fetch_sub(&live, 1);
	__real_free(p);
}

char *__wrap_strdup(const char *s)
{
	return fails(FAULT_ALLOC) ? NULL : count(__real_strdup(s));
}

char *__wrap_strndup(const char *s, size_t n)
{
	return fails(FAULT_ALLOC) ? NULL : count(__real_strndup(s, n));
}

char *__wrap_realpath(const char *path, char *resolved)
{
	return fails(FAULT_ALLOC) ? NULL : count(__real_realpath(path, resolved));
}

FILE *__wrap_fopen64(const char *path, const char *mode)
{
	return fails(FAULT_ALLOC) ? NULL : __real_fopen64(path, mode);
}

/* Their pointers are undefined after an error: it is a bug to use them then. */
int __wrap_vasprintf(char **ret, const char *fmt, va_list ap)
{
	int len = -1;

	*ret = (char *)-1;
	if (!fails(FAULT_ALLOC))
		len = __real_vasprintf(ret, fmt, ap);
	if (len >= 0)
		count(*ret);
	return len;
}

int __wrap_asprintf(char **ret, const char *fmt, ...)
{
	va_list ap;
	int len;

	va_start(ap, fmt);
	len = __wrap_vasprintf(ret, fmt, ap);
	va_end(ap);
	return len;
}

int __wrap___vasprintf_chk(char **ret, int flag, const char *fmt, va_list ap)
{
	(void)flag;
	return __wrap_vasprintf(ret, fmt, ap);
}

int __wrap___asprintf_chk(char **ret, int flag, const char *fmt, ...)
{
	va_list ap;
	int len;

	(void)flag;
	va_start(ap, fmt);
	len = __wrap_vasprintf(ret, fmt, ap);
	va_end(ap);
	return len;
}

static sqlite3_mem_methods sqlite_memory;

static void *sqlite_malloc(int len)
{
	return fails(FAULT_ALLOC) ? NULL : sqlite_memory.xMalloc(len);
}

static void *sqlite_realloc(void *p, int len)
{
	return fails(FAULT_ALLOC) ? NULL : sqlite_memory.xRealloc(p, len);
}

void fault_hook_libraries(void)
{
	sqlite3_mem_methods own;

	sqlite3_config(SQLITE_CONFIG_GETMALLOC, &sqlite_memory);
	own = sqlite_memory;
	own.xMalloc = sqlite_malloc;
	own.xRealloc = sqlite_realloc;
	sqlite3_config(SQLITE_CONFIG_MALLOC, &own);
	json_set_alloc_funcs(__wrap_malloc, __wrap_free);
}

#endif
