#include "lib/datafile.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "lib/array.h"

void wfs_datafiles_init(struct wfs_datafiles *t, int data_fd, bool read_only, unsigned max_open)
{
	memset(t, 0, sizeof(*t));
	t->data_fd = data_fd;
	t->owner = wfs_owner_of(data_fd);
	t->read_only = read_only;
	t->max_open = max_open;
	t->dirs_made = 1; /* by a process before this one, perhaps, which was killed before it synced them */
	pthread_mutex_init(&t->lock, NULL);
}

static struct wfs_datafile **bucket_of(struct wfs_datafiles *t, uint64_t id)
{
	return &t->buckets[id % WFS_DATAFILE_BUCKETS];
}

/* ---- the list of idle open files ---- */

static void idle_remove(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	*(df->newer ? &df->newer->older : &t->newest) = df->older;
	*(df->older ? &df->older->newer : &t->oldest) = df->newer;
	df->newer = df->older = NULL;
}

static void idle_add(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	df->newer = NULL;
	df->older = t->newest;
	*(t->newest ? &t->newest->newer : &t->oldest) = df;
	t->newest = df;
}

static bool is_idle(const struct wfs_datafile *df)
{
	return df->fd >= 0 && df->users == 0;
}

/* Take the descriptor out; the caller closes it after unlocking. */
static int take_fd(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	int fd = df->fd;

	if (is_idle(df))
		idle_remove(t, df);
	if (fd >= 0)
		t->n_open--;
	df->fd = -1;
	return fd;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void wfs_datafiles_release(struct wfs_datafiles *t)
{
	for (size_t i = 0; i < WFS_DATAFILE_BUCKETS; i++) {
		while (t->buckets[i]) {
			struct wfs_datafile *df = t->buckets[i];

			t->buckets[i] = df->next;
			close_fd(df->fd);
			free(df->bad);
			free(df);
		}
	}
	free(t->bad);
	close_fd(t->data_fd);
	free(t->unsure);
	pthread_mutex_destroy(&t->lock);
}

/* ---- names ---- */

static void relative_path(uint64_t id, char buf[WFS_DATAFILE_PATH_SIZE])
{
	snprintf(buf, WFS_DATAFILE_PATH_SIZE, "%02x/%016" PRIx64, (unsigned)(id & 0xff), id);
}

void wfs_datafile_path(uint64_t id, char buf[WFS_DATAFILE_PATH_SIZE])
{
	snprintf(buf, WFS_DATAFILE_PATH_SIZE, "data/%02x/%016" PRIx64, (unsigned)(id & 0xff), id);
}

bool wfs_datafile_is_hex(const char *name, size_t len)
{
	return strlen(name) == len && strspn(name, "0123456789abcdef") == len;
}

static void directory_name(uint64_t id, char buf[WFS_DATAFILE_PATH_SIZE])
{
	snprintf(buf, WFS_DATAFILE_PATH_SIZE, "%02x", (unsigned)(id & 0xff));
}

/* Counted under the lock, so that who finds the directory there also finds it counted. */
static int make_directory(struct wfs_datafiles *t, uint64_t id)
{
	char name[WFS_DATAFILE_PATH_SIZE];
	int ret = 0;

	directory_name(id, name);
	pthread_mutex_lock(&t->lock);
	if (mkdirat(t->data_fd, name, 0700) == 0) {
		wfs_owner_give(&t->owner, t->data_fd, name);
		t->dirs_made++;
	} else if (errno != EEXIST) {
		ret = -errno;
	}
	pthread_mutex_unlock(&t->lock);
	return ret;
}

/* A store that was made by others may have anything under the name of a data file. */
static int stat_regular(struct wfs_datafiles *t, const char *path, struct stat *ret)
{
	if (fstatat(t->data_fd, path, ret, AT_SYMLINK_NOFOLLOW) != 0)
		return -errno;
	return S_ISREG(ret->st_mode) ? 0 : -EUCLEAN;
}

static int create_at(struct wfs_datafiles *t, const char *path)
{
	struct stat st;
	int fd;

	if (stat_regular(t, path, &st) == -EUCLEAN)
		return -EUCLEAN;
	fd = openat(t->data_fd, path, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	wfs_owner_give(&t->owner, t->data_fd, path);
	return fd;
}

int wfs_datafile_create(struct wfs_datafiles *t, uint64_t id)
{
	char path[WFS_DATAFILE_PATH_SIZE];
	int fd;

	relative_path(id, path);
	fd = create_at(t, path);
	if (fd == -ENOENT) {
		int ret = make_directory(t, id);

		if (ret)
			return ret;
		fd = create_at(t, path);
	}
	if (fd < 0)
		return fd;
	close(fd);
	wfs_datafile_set_unsure(t, id, false);
	return 0;
}

/* The immutable flag of an open file. 0 or -errno. */
static int set_immutable(int fd, bool on)
{
	int flags;

	if (ioctl(fd, FS_IOC_GETFLAGS, &flags) != 0)
		return -errno;
	if (!(flags & FS_IMMUTABLE_FL) == !on)
		return 0;
	flags ^= FS_IMMUTABLE_FL;
	return ioctl(fd, FS_IOC_SETFLAGS, &flags) != 0 ? -errno : 0;
}

/* EPERM may be the immutable flag of wfs_datafile_close_off. */
static int remove_closed_off(struct wfs_datafiles *t, const char *path)
{
	WFS_AUTO_CLOSE int fd = openat(t->data_fd, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0 || set_immutable(fd, false) != 0)
		return -EPERM;
	return unlinkat(t->data_fd, path, 0) != 0 ? -errno : 0;
}

int wfs_datafile_remove(struct wfs_datafiles *t, uint64_t id)
{
	char path[WFS_DATAFILE_PATH_SIZE];

	relative_path(id, path);
	if (unlinkat(t->data_fd, path, 0) == 0 || errno == ENOENT) {
		wfs_datafile_set_unsure(t, id, false);
		return 0;
	}
	return errno == EPERM ? remove_closed_off(t, path) : -errno;
}

int wfs_datafile_stat(struct wfs_datafiles *t, uint64_t id, struct stat *ret_stat)
{
	char path[WFS_DATAFILE_PATH_SIZE];

	int ret;

	relative_path(id, path);
	ret = stat_regular(t, path, ret_stat);
	return ret == -EUCLEAN ? -ENOENT : ret; /* not the file that is meant */
}

int wfs_datafile_utimens(struct wfs_datafiles *t, uint64_t id, const struct timespec times[2])
{
	char path[WFS_DATAFILE_PATH_SIZE];

	relative_path(id, path);
	return utimensat(t->data_fd, path, times, AT_SYMLINK_NOFOLLOW) != 0 ? -errno : 0;
}

/* ---- references ---- */

struct wfs_datafile *wfs_datafile_get(struct wfs_datafiles *t, uint64_t id)
{
	struct wfs_datafile **head = bucket_of(t, id);
	struct wfs_datafile *df;

	pthread_mutex_lock(&t->lock);
	for (df = *head; df && df->id != id; df = df->next)
		;
	if (!df) {
		df = calloc(1, sizeof(*df));
		if (df) {
			df->id = id;
			df->fd = -1;
			df->next = *head;
			*head = df;
			if (t->n_bad)
				wfs_datafile_note_bad(t, df);
		}
	}
	if (df)
		df->refs++;
	pthread_mutex_unlock(&t->lock);
	return df;
}

struct wfs_datafile *wfs_datafile_ref(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	pthread_mutex_lock(&t->lock);
	df->refs++;
	pthread_mutex_unlock(&t->lock);
	return df;
}

void wfs_datafile_unref(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	struct wfs_datafile **p = bucket_of(t, df->id);
	int fd = -1;

	pthread_mutex_lock(&t->lock);
	if (--df->refs > 0)
		df = NULL;
	if (df) {
		assert(df->users == 0);
		fd = take_fd(t, df);
		while (*p != df)
			p = &(*p)->next;
		*p = df->next;
	}
	pthread_mutex_unlock(&t->lock);
	close_fd(fd);
	if (df)
		free(df->bad);
	free(df);
}

unsigned wfs_datafile_count_refs(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	unsigned refs;

	pthread_mutex_lock(&t->lock);
	refs = df->refs;
	pthread_mutex_unlock(&t->lock);
	return refs;
}

/* ---- descriptors ---- */

static int open_as(struct wfs_datafiles *t, uint64_t id, int mode)
{
	char path[WFS_DATAFILE_PATH_SIZE];
	struct stat st;
	int fd;

	relative_path(id, path);
	fd = stat_regular(t, path, &st);
	if (fd == -EUCLEAN)
		fd = -EIO; /* damage, for who reads it */
	if (fd)
		return fd;
	do
		fd = openat(t->data_fd, path, mode | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	while (fd < 0 && errno == EWOULDBLOCK); /* a lease of our own, for a moment */
	return fd < 0 ? -errno : fd;
}

static int open_file(struct wfs_datafiles *t, const struct wfs_datafile *df)
{
	return open_as(t, df->id, t->read_only || df->frozen ? O_RDONLY : O_RDWR);
}

int wfs_datafile_open(struct wfs_datafiles *t, uint64_t id)
{
	return open_as(t, id, O_RDONLY);
}

/* Close the file that was not used for the longest time, if there are too many. */
static int evict(struct wfs_datafiles *t)
{
	return t->n_open > t->max_open && t->oldest ? take_fd(t, t->oldest) : -1;
}

/* Under the lock. Users of the descriptor keep its number; what they are at goes on with the old one. */
static int set_frozen(struct wfs_datafiles *t, struct wfs_datafile *df, bool frozen)
{
	int fd, ret = 0;

	if (df->frozen == frozen)
		return 0;
	df->frozen = frozen;
	if (df->fd < 0)
		return 0;
	fd = open_file(t, df);
	if (fd < 0 || dup3(fd, df->fd, O_CLOEXEC) < 0) {
		ret = fd < 0 ? fd : -errno;
		df->frozen = !frozen;
	}
	close_fd(fd);
	return ret;
}

/* Under the lock. */
static int use(struct wfs_datafiles *t, struct wfs_datafile *df, int *spare)
{
	int fd;

	if (df->fd < 0) {
		/* open(2) is no I/O on data; under the lock nobody opens it twice. */
		fd = open_file(t, df);
		if (fd == -EMFILE && t->oldest) {
			close_fd(take_fd(t, t->oldest));
			fd = open_file(t, df);
		}
		if (fd >= 0) {
			df->fd = fd;
			t->n_open++;
			*spare = evict(t);
		}
	} else {
		fd = df->fd;
		if (df->users == 0)
			idle_remove(t, df);
	}
	if (fd >= 0)
		df->users++;
	return fd;
}

int wfs_datafile_use(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	int fd, spare = -1;

	pthread_mutex_lock(&t->lock);
	fd = use(t, df, &spare);
	pthread_mutex_unlock(&t->lock);
	close_fd(spare);
	return fd;
}

int wfs_datafile_use_to_write(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	int fd, spare = -1;

	pthread_mutex_lock(&t->lock);
	fd = set_frozen(t, df, false);
	if (fd == 0)
		fd = use(t, df, &spare);
	pthread_mutex_unlock(&t->lock);
	close_fd(spare);
	return fd;
}

void wfs_datafile_unuse(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	int spare = -1;

	pthread_mutex_lock(&t->lock);
	if (--df->users == 0) {
		idle_add(t, df);
		spare = evict(t);
	}
	pthread_mutex_unlock(&t->lock);
	close_fd(spare);
}

/* ---- who else has it ---- */

static int try_lease(struct wfs_datafiles *t, struct wfs_datafile *df, int type)
{
	int fd = wfs_datafile_use(t, df);
	int ret;

	if (fd < 0)
		return fd;
	ret = fcntl(fd, F_SETLEASE, type) != 0 ? -errno : 0;
	if (ret == 0)
		fcntl(fd, F_SETLEASE, F_UNLCK);
	wfs_datafile_unuse(t, df);
	return ret == -EAGAIN ? -EBUSY : ret;
}

int wfs_datafile_freeze(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	int ret;

	pthread_mutex_lock(&t->lock);
	ret = set_frozen(t, df, true);
	pthread_mutex_unlock(&t->lock);
	return ret ? ret : try_lease(t, df, F_RDLCK);
}

bool wfs_datafile_is_ours(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	return try_lease(t, df, F_WRLCK) == 0;
}

int wfs_datafiles_scratch(struct wfs_datafiles *t)
{
	int fd = openat(t->data_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	return fd < 0 ? -errno : fd;
}

/* 1 or -1. */
static int try_close_off(struct wfs_datafiles *t)
{
	WFS_AUTO_CLOSE int fd = wfs_datafiles_scratch(t);
	bool holds;

	if (fd < 0 || set_immutable(fd, true) != 0)
		return -1;
	holds = pwrite(fd, "", 1, 0) < 0;
	set_immutable(fd, false);
	return holds ? 1 : -1;
}

int wfs_datafile_close_off(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	int fd, ret;

	if (atomic_load(&t->closes_off) == 0)
		atomic_store(&t->closes_off, try_close_off(t));
	if (atomic_load(&t->closes_off) < 0)
		return -EOPNOTSUPP;
	fd = wfs_datafile_use(t, df);
	if (fd < 0)
		return fd;
	ret = set_immutable(fd, true);
	wfs_datafile_unuse(t, df);
	return ret;
}

int wfs_datafile_reopen(struct wfs_datafiles *t, uint64_t id)
{
	WFS_AUTO_CLOSE int fd = wfs_datafile_open(t, id);

	return fd < 0 ? fd : set_immutable(fd, false);
}

/* ---- the collector ---- */

bool wfs_datafile_begin_collect(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	bool ok;

	pthread_mutex_lock(&t->lock);
	ok = df->refs == 1;
	if (ok)
		df->collecting = true;
	pthread_mutex_unlock(&t->lock);
	return ok;
}

void wfs_datafile_end_collect(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	pthread_mutex_lock(&t->lock);
	df->collecting = false;
	pthread_mutex_unlock(&t->lock);
}

bool wfs_datafile_is_collecting(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	bool collecting;

	pthread_mutex_lock(&t->lock);
	collecting = df->collecting;
	pthread_mutex_unlock(&t->lock);
	return collecting;
}

/* ---- bytes ---- */

/* Make the directories that were made durable themselves. */
static int sync_directories(struct wfs_datafiles *t)
{
	unsigned made, synced;

	pthread_mutex_lock(&t->lock);
	made = t->dirs_made;
	synced = t->dirs_synced;
	pthread_mutex_unlock(&t->lock);
	if (made == synced)
		return 0;
	if (fsync(t->data_fd) != 0)
		return -errno;
	pthread_mutex_lock(&t->lock);
	if (t->dirs_synced < made)
		t->dirs_synced = made;
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static int sync_dir_of(struct wfs_datafiles *t, uint64_t id)
{
	char name[WFS_DATAFILE_PATH_SIZE];
	WFS_AUTO_CLOSE int fd = -1;

	directory_name(id, name);
	fd = openat(t->data_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) != 0 ? -errno : sync_directories(t);
}

int wfs_datafile_empty(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	int ret, fd = wfs_datafile_use_to_write(t, df);

	if (fd < 0)
		return fd;
	ret = ftruncate(fd, 0) != 0 ? -errno : 0;
	wfs_datafile_unuse(t, df);
	if (ret == 0)
		wfs_datafile_set_unsure(t, df->id, false);
	return ret;
}

/* ---- syncs that have failed ---- */

/* Under the lock. */
static size_t find_unsure(const struct wfs_datafiles *t, uint64_t id)
{
	size_t i = 0;

	while (i < t->n_unsure && t->unsure[i] != id)
		i++;
	return i;
}

bool wfs_datafile_is_unsure(struct wfs_datafiles *t, uint64_t id)
{
	bool unsure;

	pthread_mutex_lock(&t->lock);
	unsure = t->all_unsure || find_unsure(t, id) < t->n_unsure;
	pthread_mutex_unlock(&t->lock);
	return unsure;
}

/* Under the lock. */
static void add_unsure(struct wfs_datafiles *t, uint64_t id)
{
	if (WFS_ARRAY_ROOM(t->unsure, t->n_unsure, t->unsure_room))
		t->all_unsure = true;
	else
		t->unsure[t->n_unsure++] = id;
}

void wfs_datafile_set_unsure(struct wfs_datafiles *t, uint64_t id, bool unsure)
{
	size_t i;

	pthread_mutex_lock(&t->lock);
	i = find_unsure(t, id);
	if (unsure && i == t->n_unsure)
		add_unsure(t, id);
	else if (!unsure && i < t->n_unsure)
		t->unsure[i] = t->unsure[--t->n_unsure];
	pthread_mutex_unlock(&t->lock);
}

static int sync_new_entry(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	bool dir_synced;
	int ret;

	pthread_mutex_lock(&t->lock);
	dir_synced = df->dir_synced;
	pthread_mutex_unlock(&t->lock);
	if (dir_synced)
		return 0;
	ret = sync_dir_of(t, df->id);
	pthread_mutex_lock(&t->lock);
	df->dir_synced = df->dir_synced || ret == 0;
	pthread_mutex_unlock(&t->lock);
	return ret;
}

int wfs_datafile_sync(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	int ret = 0;
	int fd = wfs_datafile_use(t, df);

	if (fd < 0)
		return fd;
	if (wfs_datafile_is_unsure(t, df->id)) {
		ret = -EIO;
	} else if (fdatasync(fd) != 0) {
		ret = -errno;
		wfs_datafile_set_unsure(t, df->id, true);
	}
	wfs_datafile_unuse(t, df);
	if (ret == 0)
		ret = sync_new_entry(t, df);
	if (ret == -EIO)
		wfs_datafile_set_unsure(t, df->id, true);
	return ret;
}

int wfs_pread_all(int fd, void *buf, size_t len, uint64_t offset)
{
	char *p = buf;

	while (len > 0) {
		ssize_t n = pread(fd, p, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		p += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

ssize_t wfs_pwrite_some(int fd, const void *buf, size_t len, uint64_t offset)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pwrite(fd, (const char *)buf + done, len - done,
			(off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return done ? (ssize_t)done : -errno;
		done += (size_t)n;
	}
	return (ssize_t)done;
}
