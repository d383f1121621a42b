#include "lib/store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>

#include "lib/collect.h"
#include "lib/crash.h"
#include "lib/damage.h"
#include "lib/datafile_state.h"
#include "lib/flush.h"
#include "lib/listdir.h"
#include "lib/owner.h"
#include "lib/quota.h"
#include "lib/recover.h"
#include "lib/reserve.h"
#include "lib/store_priv.h"

/* ---- small things that all of lib/ uses ---- */

void wfs_store_log(struct wfs_store *s, const char *fmt, ...)
{
	char line[600];
	va_list ap;

	if (!s->options.log)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	s->options.log(s->options.log_ctx, line);
}

uint64_t wfs_store_lock_address(const struct wfs_store *store)
{
	return (uintptr_t)&store->db.lock;
}

const char *wfs_store_path(const struct wfs_store *store)
{
	return store->path;
}

void wfs_store_use_directly(struct wfs_store *store)
{
	atomic_store(&store->is_direct, true);
}

int wfs_store_note(struct wfs_store *s, const char *key, const char *text)
{
	int ret = s->db.read_only ? -EROFS : wfs_db_begin(&s->db);

	return ret ? ret : wfs_db_end(&s->db, wfs_db_run(&s->db, WFS_Q_META_SET, "tt", key, text));
}

int wfs_store_read_note(struct wfs_store *s, const char *key, char **ret)
{
	sqlite3_stmt *row;
	int found = wfs_db_begin_read(&s->db);

	*ret = NULL;
	if (found)
		return found;
	found = wfs_db_first(&s->db, WFS_Q_META_GET, &row, "t", key);
	if (found > 0) {
		const unsigned char *text = sqlite3_column_text(row, 0);

		*ret = text ? strdup((const char *)text) : NULL;
		/* Without memory SQLite gives no text, either. */
		found = !*ret && sqlite3_column_type(row, 0) != SQLITE_NULL ? -ENOMEM : 0;
		wfs_db_done(row);
	}
	return wfs_db_end(&s->db, found);
}

int wfs_store_drop_note(struct wfs_store *s, const char *key)
{
	WFS_AUTO_FREE char *note = NULL;
	int ret = wfs_store_read_note(s, key, &note);

	return ret || !note ? ret : wfs_store_note(s, key, NULL);
}

bool wfs_store_is_read_only(const struct wfs_store *store)
{
	return store->db.read_only;
}

bool wfs_store_is_lost(const struct wfs_store *store)
{
	return atomic_load(&store->db.is_lost);
}

bool wfs_store_check_place(struct wfs_store *s)
{
	struct stat st;

	if (fstatat(s->dir_fd, "weightfs.db", &st, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT)
		return true;
	if (!atomic_exchange(&s->db.is_lost, true))
		wfs_store_log(s, "%s was removed while it is mounted: nothing can be written any "
			"more, and what is not in memory cannot be read", s->path);
	return false;
}

/* ---- durability ---- */

#define FAILED "failed" /* in the lock file, after the pid */

/* For `weightfs status`, another process: the database cannot tell it. */
static void say_failed(struct wfs_store *s)
{
	char text[64];
	int len = snprintf(text, sizeof(text), "%d " FAILED "\n", (int)getpid());

	if (!atomic_exchange(&s->has_said_failed, true) && pwrite(s->lock_fd, text, (size_t)len, 0) != len)
		wfs_store_log(s, "%s/lock cannot be written: %s", s->path, strerror(errno));
}

int wfs_store_sync_to(struct wfs_store *s, uint64_t commits)
{
	int ret = wfs_db_sync_to(&s->db, commits);

	if (ret && wfs_store_is_lost(s))
		say_failed(s);
	return ret;
}

int wfs_store_sync(struct wfs_store *s)
{
	int ret = wfs_flush_all(s);

	return ret ? ret : wfs_store_sync_to(s, wfs_db_commits(&s->db));
}

int wfs_store_checkpoint(struct wfs_store *s, int min_pages)
{
	int ret = wfs_store_sync(s);

	return ret ? ret : wfs_db_checkpoint(&s->db, min_pages);
}

int wfs_store_log_pages(struct wfs_store *s)
{
	int pages;

	pthread_mutex_lock(&s->db.lock);
	pages = s->db.wal_pages;
	pthread_mutex_unlock(&s->db.lock);
	return pages;
}

uint64_t wfs_store_commits(struct wfs_store *s)
{
	return wfs_db_commits(&s->db);
}

int wfs_store_tidy(struct wfs_store *s)
{
	int ret = wfs_store_sync(s);

	return ret ? ret : wfs_db_tidy(&s->db);
}

/* ---- the directory ---- */

/* The database's, too: of a process that died as it made the store. */
static const char *const own_names[] = { "lock", "data", "weightfs.log", "weightfs.log.1",
	"lost+found", "control", "reserve", "weightfs.db", "weightfs.db-journal", "weightfs.db-wal",
	"weightfs.db-shm" };

static bool is_own_name(const char *name)
{
	for (size_t i = 0; i < WFS_ARRAY_SIZE(own_names); i++)
		if (strcmp(name, own_names[i]) == 0)
			return true;
	return false;
}

/* Without a database: may a store be made here, or are there other things? */
static int check_empty(int dir_fd, const char *path, struct wfs_err *err)
{
	char name[NAME_MAX + 1];
	int found = wfs_listdir_other(dir_fd, is_own_name, name);

	if (found > 0)
		return wfs_err_set(err, -ENOTEMPTY, "not-a-store", WFS_NO_OFFSET,
			"%s is no weightfs store and not empty (it has '%s'); name a new or an "
			"empty directory", path, name);
	return found ? wfs_err_errno(err, found, "%s", path) : 0;
}

static int open_directory(struct wfs_store *s, const char *path, struct wfs_err *err)
{
	const struct wfs_store_options *o = &s->options;

	if (o->mode == WFS_STORE_WRITE && o->create && mkdir(path, 0700) != 0 && errno != EEXIST)
		return wfs_err_errno(err, -errno, "the store %s cannot be made", path);
	s->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->dir_fd < 0 && errno == ENOENT)
		return wfs_err_set(err, -ENOENT, "store-missing", WFS_NO_OFFSET,
			"%s: no such store", path);
	if (s->dir_fd < 0 && errno == ENOTDIR)
		return wfs_err_set(err, -ENOTDIR, "not-a-directory", WFS_NO_OFFSET,
			"%s is not a directory; a store is one", path);
	if (s->dir_fd < 0)
		return wfs_err_errno(err, -errno, "%s", path);
	s->path = realpath(path, NULL);
	return s->path ? 0 : wfs_err_errno(err, -errno, "%s", path);
}

/* ---- the lock ---- */

static int read_pid(int fd)
{
	char text[32] = "";
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	return n > 0 ? atoi(text) : 0;
}

/*
 * Is the process that had the store dead, though its lock is still there? The
 * kernel ends the threads of a killed process one by one, and the lock with the
 * last. So does `weightfs status` look at the lock, for an instant.
 */
static bool holder_is_gone(int pid)
{
	char path[64], text[512], *state;
	WFS_AUTO_CLOSE int fd = -1;
	ssize_t n;

	if (pid <= 0 || pid == getpid())
		return pid <= 0;
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;
	if (n <= 0)
		return true;
	text[n] = '\0';
	state = strrchr(text, ')');
	return state && (strncmp(state, ") Z", 3) == 0 || strncmp(state, ") X", 3) == 0);
}

#define LOCK_WAIT_NS 20000000 /* 20 ms */
#define TRIES_GONE 100        /* 2 s for a process that was killed */
#define TRIES_THERE 15        /* 0.3 s: an unmount is over before its driver knows of it */
#define TRIES_QUIET 100       /* after 2 s of waiting for the end of a driver that is said */
#define ENDING "ending"       /* in the lock file, after the pid */

static bool holder_says(int fd, const char *word)
{
	char text[64] = "";

	return pread(fd, text, sizeof(text) - 1, 0) > 0 && strstr(text, word);
}

static bool holder_is_ending(int fd)
{
	return holder_says(fd, " " ENDING);
}

/*
 * flock, with patience for a holder that is on its way out: for as long as it
 * says that it is ending, since it may have much to seal. errno as flock(2).
 */
static int lock_patiently(struct wfs_store *s, int how)
{
	const struct timespec wait = { .tv_nsec = LOCK_WAIT_NS };

	for (int tries = 0, waited = 0;; waited++) {
		if (flock(s->lock_fd, how | LOCK_NB) == 0)
			return 0;
		if (errno != EWOULDBLOCK)
			return -1;
		if (!holder_is_ending(s->lock_fd) &&
			++tries > (holder_is_gone(read_pid(s->lock_fd)) ? TRIES_GONE : TRIES_THERE))
			break;
		if (waited == TRIES_QUIET)
			wfs_store_log(s, "waiting for process %d, which seals what was written before it ends",
				read_pid(s->lock_fd));
		nanosleep(&wait, NULL);
	}
	errno = EWOULDBLOCK;
	return -1;
}

void wfs_store_say_ending(struct wfs_store *s)
{
	char text[64];
	int len = snprintf(text, sizeof(text), "%d " ENDING "\n", (int)getpid());

	/* Who is not told is only refused instead of kept waiting. */
	if (s->options.mode == WFS_STORE_WRITE && pwrite(s->lock_fd, text, (size_t)len, 0) != len)
		wfs_store_log(s, "%s/lock cannot be written: %s", s->path, strerror(errno));
}

static int is_in_use(struct wfs_store *s, struct wfs_err *err)
{
	if (errno != EWOULDBLOCK)
		return wfs_err_errno(err, -errno, "%s/lock", s->path);
	return wfs_err_set(err, -EBUSY, "store-locked", WFS_NO_OFFSET,
		"%s is in use by process %d; one mount at a time may write a store", s->path,
		read_pid(s->lock_fd));
}

/* The lock itself: a regular file, whatever the store was made of. A descriptor or -errno. */
static int open_lock(int dir_fd, int flags)
{
	int fd = openat(dir_fd, "lock", flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600);
	struct stat st;
	int ret = fd < 0 || fstat(fd, &st) != 0 ? -errno : S_ISREG(st.st_mode) ? fd : -EUCLEAN;

	if (ret < 0 && fd >= 0)
		close(fd);
	return ret;
}

/* With others that only look, too. A store that never had a writer since it was copied has no lock. */
static int hold_lock(struct wfs_store *s, struct wfs_err *err)
{
	s->lock_fd = open_lock(s->dir_fd, O_RDONLY);
	if (s->lock_fd < 0)
		return s->lock_fd == -ENOENT ? 0 : wfs_err_errno(err, s->lock_fd, "%s/lock", s->path);
	return lock_patiently(s, LOCK_SH) == 0 ? 0 : is_in_use(s, err);
}

static int take_lock(struct wfs_store *s, struct wfs_err *err)
{
	char text[32];
	int len;

	s->lock_fd = open_lock(s->dir_fd, O_RDWR | O_CREAT);
	if (s->lock_fd == -EROFS)
		return wfs_err_set(err, -EROFS, "read-only", WFS_NO_OFFSET,
			"%s lies on a read-only file system; mount it with -o ro", s->path);
	if (s->lock_fd < 0)
		return wfs_err_errno(err, s->lock_fd, "%s/lock", s->path);
	wfs_owner_inherit(s->dir_fd, "lock");
	if (lock_patiently(s, LOCK_EX) != 0)
		return is_in_use(s, err);
	len = snprintf(text, sizeof(text), "%d\n", (int)getpid());
	if (ftruncate(s->lock_fd, 0) != 0 || pwrite(s->lock_fd, text, (size_t)len, 0) != len)
		return wfs_err_errno(err, -errno, "%s/lock", s->path);
	return 0;
}

static int open_lock_of(const char *path)
{
	WFS_AUTO_CLOSE int dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return dir_fd < 0 ? -1 : open_lock(dir_fd, O_RDONLY);
}

bool wfs_store_is_ending(const char *path)
{
	WFS_AUTO_CLOSE int fd = open_lock_of(path);

	return fd >= 0 && holder_is_ending(fd);
}

bool wfs_store_has_failed(const char *path)
{
	WFS_AUTO_CLOSE int fd = open_lock_of(path);

	return fd >= 0 && holder_says(fd, " " FAILED);
}

bool wfs_store_is_locked(const char *path, int *ret_pid)
{
	WFS_AUTO_CLOSE int fd = open_lock_of(path);

	*ret_pid = 0;
	if (fd < 0 || flock(fd, LOCK_SH | LOCK_NB) == 0 || errno != EWOULDBLOCK)
		return false;
	*ret_pid = read_pid(fd);
	return true;
}

bool wfs_store_is_left(const char *path)
{
	int pid;

	return !wfs_store_is_locked(path, &pid) || holder_is_gone(pid);
}

/* ---- open and close ---- */

static int has_database(struct wfs_store *s, bool *ret)
{
	struct stat st;

	if (fstatat(s->dir_fd, "weightfs.db", &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISREG(st.st_mode))
		return -ELOOP;
	if (fstatat(s->dir_fd, "weightfs.db", &st, AT_SYMLINK_NOFOLLOW) == 0)
		*ret = st.st_size > 0; /* 0: the process that made it died at once */
	else if (errno == ENOENT)
		*ret = false;
	else
		return -errno;
	return 0;
}

static int insert_root(struct wfs_store *s)
{
	int64_t now = wfs_now_ns();
	int ret = wfs_db_begin(&s->db);

	if (ret)
		return ret;
	ret = wfs_db_run(&s->db, WFS_Q_INODE_INSERT, "iiiiiiiiiibo", (uint64_t)(S_IFDIR | 0755),
		(uint64_t)geteuid(), (uint64_t)getegid(), UINT64_C(2), UINT64_C(0), UINT64_C(0),
		now, now, now, now, NULL, (size_t)0, UINT64_C(0));
	if (ret == 0)
		ret = wfs_db_run(&s->db, WFS_Q_META_SET, "ti", "created_ns", now);
	return wfs_db_end(&s->db, ret);
}

/* Crashed between the schema and the root: there is nothing to lose yet. */
static int ensure_root(struct wfs_store *s)
{
	struct wfs_attr root;
	int ret = wfs_name_getattr(s, WFS_ROOT_INO, &root);

	if (ret != -ENOENT)
		return ret;
	ret = insert_root(s);
	if (ret == 0 && fsync(s->dir_fd) != 0)
		ret = -errno;
	return ret;
}

/* SQLite would make it as the umask says, and the log beside it like it. */
static int create_database(struct wfs_store *s)
{
	WFS_AUTO_CLOSE int fd = openat(s->dir_fd, "weightfs.db",
		O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (fd < 0 || fchmod(fd, 0600) != 0)
		return -errno;
	wfs_owner_inherit(s->dir_fd, "weightfs.db");
	return 0;
}

static unsigned raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		return 256;
	if (limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
		getrlimit(RLIMIT_NOFILE, &limit);
	}
	return (unsigned)WFS_MIN(limit.rlim_cur / 2, (rlim_t)4096);
}

static int open_database(struct wfs_store *s, struct wfs_err *err)
{
	bool writes = s->options.mode == WFS_STORE_WRITE;
	bool exists = false;
	int ret = has_database(s, &exists);

	if (ret)
		return wfs_err_errno(err, ret, "%s/weightfs.db", s->path);
	if (!exists && faccessat(s->dir_fd, "weightfs.db.next", F_OK, AT_SYMLINK_NOFOLLOW) == 0)
		return wfs_err_set(err, -ENOTEMPTY, "backup-unfinished", WFS_NO_OFFSET,
			"%s is a backup that was interrupted in its last step", s->path);
	if (!exists && !(writes && s->options.create)) {
		ret = check_empty(s->dir_fd, s->path, err);
		return ret ? ret : wfs_err_set(err, -ENOTEMPTY, "not-a-store", WFS_NO_OFFSET,
			"%s is no weightfs store: it has no weightfs.db", s->path);
	}
	if (!exists)
		ret = check_empty(s->dir_fd, s->path, err);
	if (!ret && writes)
		ret = take_lock(s, err);
	if (!ret && s->options.mode == WFS_STORE_HOLD)
		ret = hold_lock(s, err);
	if (!ret && !exists && mkdirat(s->dir_fd, "data", 0700) != 0 && errno != EEXIST)
		return wfs_err_errno(err, -errno, "%s/data", s->path);
	if (!ret && !exists)
		wfs_owner_inherit(s->dir_fd, "data");
	s->db.digest_bits = s->options.digest_bits;
	if (!ret && !exists && create_database(s) != 0)
		return wfs_err_errno(err, -errno, "%s/weightfs.db", s->path);
	s->db.log = s->options.log;
	s->db.log_ctx = s->options.log_ctx;
	return ret ? ret : wfs_db_open(&s->db, s->path, !writes, writes && s->options.create, err);
}

/*
 * data/xx, which all paths of data files go through, are directories, and lead nowhere else. Later
 * on it is the owner alone who could change that.
 */
static int check_data(struct wfs_store *s, int data_fd, struct wfs_err *err)
{
	char name[3];
	struct stat st;

	for (unsigned xx = 0; xx < 256; xx++) {
		snprintf(name, sizeof(name), "%02x", xx);
		if (fstatat(data_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(st.st_mode))
			return wfs_err_set(err, -EUCLEAN, "store-damaged", WFS_NO_OFFSET,
				"%s/data/%s is no directory; run weightfs fsck", s->path, name);
	}
	return 0;
}

static int open_data(struct wfs_store *s, struct wfs_err *err)
{
	struct statfs st;
	int fd = openat(s->dir_fd, "data", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0)
		return wfs_err_errno(err, -errno, "%s/data", s->path);
	if (check_data(s, fd, err) != 0) {
		close(fd);
		return -EUCLEAN;
	}
	wfs_datafiles_init(&s->datafiles, fd, s->db.read_only, raise_file_limit());
	if (fstatfs(fd, &st) == 0) {
		s->share_block = (uint64_t)st.f_bsize;
		s->frees_extents_whole = st.f_type == BTRFS_SUPER_MAGIC;
	}
	return 0;
}

static void free_store(struct wfs_store *s)
{
	if (s->dir_fd >= 0)
		close(s->dir_fd);
	if (s->lock_fd >= 0)
		close(s->lock_fd); /* and with it the lock, last of all */
	pthread_mutex_destroy(&s->settle_lock);
	for (size_t i = 0; i < WFS_PUT_LOCKS; i++)
		pthread_mutex_destroy(&s->put_locks[i]);
	pthread_mutex_destroy(&s->files_lock);
	pthread_mutex_destroy(&s->flush_lock);
	pthread_mutex_destroy(&s->flush_run_lock);
	pthread_mutex_destroy(&s->quota_lock);
	wfs_pins_free(s->pins);
	wfs_models_free(s->models);
	pthread_mutex_destroy(&s->collect_lock);
	pthread_mutex_destroy(&s->spare_lock);
	free(s->flush);
	free(s->path);
	free(s);
}

static struct wfs_store *new_store(const struct wfs_store_options *options)
{
	struct wfs_store *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->pins = wfs_pins_new();
	s->models = wfs_models_new();
	if (!s->pins || !s->models) {
		wfs_pins_free(s->pins);
		wfs_models_free(s->models);
		free(s);
		return NULL;
	}
	s->options = *options;
	if (s->options.digest_bits == 0 || s->options.digest_bits > 128)
		s->options.digest_bits = 128;
	s->dir_fd = -1;
	s->lock_fd = -1;
	pthread_mutex_init(&s->settle_lock, NULL);
	for (size_t i = 0; i < WFS_PUT_LOCKS; i++)
		pthread_mutex_init(&s->put_locks[i], NULL);
	pthread_mutex_init(&s->files_lock, NULL);
	pthread_mutex_init(&s->flush_lock, NULL);
	pthread_mutex_init(&s->flush_run_lock, NULL);
	pthread_mutex_init(&s->quota_lock, NULL);
	pthread_mutex_init(&s->collect_lock, NULL);
	pthread_mutex_init(&s->spare_lock, NULL);
	s->keeps_spares = true;
	return s;
}

int wfs_store_open(const char *path, const struct wfs_store_options *options,
	struct wfs_store **ret, struct wfs_err *err)
{
	struct wfs_store *s = new_store(options);
	int e;

	if (!s)
		return -ENOMEM;
	e = open_directory(s, path, err);
	if (!e)
		e = open_database(s, err);
	if (e) {
		free_store(s);
		return e;
	}
	e = open_data(s, err);
	if (e) {
		wfs_db_close(&s->db);
		free_store(s);
		return e;
	}
	if (!s->db.read_only)
		e = ensure_root(s);
	if (!e)
		e = wfs_damage_load(s);
	if (!e && !s->db.read_only)
		e = wfs_store_load_unsure(s);
	if (!e && !s->db.read_only)
		e = wfs_recover(s, err);
	if (!e)
		e = wfs_model_count_pending(s);
	if (!e)
		wfs_quota_count(s);
	/* That it is open is on the disk before anything is changed that no transaction tells of. */
	if (!e && !s->db.read_only)
		e = fsync(s->dir_fd) != 0 ? -errno : wfs_db_sync(&s->db);
	if (!e && !s->db.read_only && wfs_reserve_keep(s) != 0)
		wfs_store_log(s, "%s: no space could be reserved for removals on a full disk",
			s->path);
	if (e) {
		wfs_err_set(err, e, e == -EUCLEAN ? "store-damaged" : "io", WFS_NO_OFFSET,
			"%s: %s; run weightfs fsck", s->path, strerror(-e));
		wfs_datafiles_release(&s->datafiles);
		wfs_db_close(&s->db);
		free_store(s);
		return e;
	}
	*ret = s;
	return 0;
}

#define MAX_TIDY 1000 /* rounds at the end of a mount: 2 GiB of unused database */

/* An orderly end: everything on disk, and the store says so. */
static int finish(struct wfs_store *s)
{
	int ret = wfs_recover_orphans(s);
	int e;

	/* Of what could not even be abandoned. */
	e = wfs_recover_filling(s);
	if (!ret)
		ret = e;
	wfs_crash_at("unmount-before-collect");
	wfs_spare_stop(s);
	e = wfs_collect(s);
	if (!ret)
		ret = e;
	e = wfs_recover_uncommitted(s);
	if (!ret)
		ret = e;
	e = wfs_recover_flush_dirty(s);
	if (!ret)
		ret = e;
	for (int tries = 0; !ret && (e = wfs_store_tidy(s)) > 0 && tries < MAX_TIDY; tries++)
		;
	if (!ret && e < 0)
		ret = e;
	if (ret)
		return ret;
	wfs_crash_at("unmount-before-clean");
	ret = wfs_db_begin(&s->db);
	if (ret)
		return ret;
	ret = wfs_db_run(&s->db, WFS_Q_META_SET, "ti", "clean", UINT64_C(1));
	ret = wfs_db_end(&s->db, ret);
	wfs_crash_at("unmount-after-clean");
	return ret ? ret : wfs_db_sync(&s->db);
}

int wfs_store_close(struct wfs_store *s)
{
	int ret;

	wfs_models_free(s->models); /* what they refer to could not be given back */
	s->models = NULL;
	ret = s->db.read_only ? 0 : finish(s);
	if (ret)
		wfs_store_log(s, "closing the store: %s; it recovers at the next mount",
			strerror(-ret));
	wfs_datafiles_release(&s->datafiles);
	wfs_db_close(&s->db);
	free_store(s);
	return ret;
}
