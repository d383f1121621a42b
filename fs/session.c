#include "fs/session.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/format.h"

#include "fs/driver.h"
#include "fs/guard.h"
#include "fs/loop.h"
#include "fs/sandbox.h"
#include "fs/strict.h"
#include "fs/unmount.h"

#ifdef WFS_COVERAGE
void __gcov_dump(void);
#endif

#define THREADS 16

/* ---- libfuse ---- */

static void set_capabilities(struct fuse_conn_info *conn)
{
	const unsigned wanted = FUSE_CAP_ASYNC_READ | FUSE_CAP_PARALLEL_DIROPS |
				FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO |
				FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_CACHE_SYMLINKS |
				FUSE_CAP_ASYNC_DIO | FUSE_CAP_EXPORT_SUPPORT |
				FUSE_CAP_SPLICE_WRITE;
	/*
	 * Not: writeback caching, for the gate must see the bytes at rename and
	 * close; invalidation by mtime, for only this mount changes files;
	 * killing set-id bits, which the kernel then does itself; locks, which
	 * are the kernel's own.
	 */
	conn->want &= ~(unsigned)(FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_AUTO_INVAL_DATA |
		FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_MOVE | FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS);
	conn->want |= conn->capable & wanted;
	conn->max_write = WFS_MAX_IO;
	conn->max_read = WFS_MAX_IO; /* and as an option of the mount: libfuse wants both */
	conn->max_readahead = WFS_MAX_IO;
	conn->max_background = 64;
	conn->congestion_threshold = 48;
	conn->time_gran = 1;
}

void wfs_session_ready(struct wfs_driver *d)
{
	int null;
	char ok = 0;

	if (chdir("/") != 0)
		wfs_log(&d->log, "chdir /: %s", strerror(errno));
	if (d->ready_fd < 0)
		return;
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
		dup2(null, STDERR_FILENO);
		close(null);
	}
	if (write(d->ready_fd, &ok, 1) != 1)
		wfs_log(&d->log, "the command that started the mount has gone");
	close(d->ready_fd);
	d->ready_fd = -1;
}

void wfs_session_init(void *userdata, struct fuse_conn_info *conn)
{
	set_capabilities(conn);
	wfs_passthrough_want(userdata, conn);
}


/* ---- paths ---- */

/* True if `path` is `dir` or below it; both absolute and resolved. */
static bool is_within(const char *path, const char *dir)
{
	size_t len = strlen(dir);

	if (strcmp(dir, "/") == 0)
		return true;
	return strncmp(path, dir, len) == 0 && (path[len] == '/' || path[len] == '\0');
}

static int find_mountpoint(struct wfs_driver *d, struct wfs_err *err)
{
	const char *name = d->options->mountpoint;
	struct stat st;

	if (wfs_is_dead_mount(name)) {
		if (wfs_detach(name) != 0)
			return wfs_err_set(err, -ENOTCONN, "mountpoint-dead", WFS_NO_OFFSET,
				"%s is a mount whose driver is gone, and cannot be detached", name);
		wfs_log(&d->log, "%s was the mount of a driver that is gone: detached", name);
	}
	d->mountpoint = stat(name, &st) == 0 ? realpath(name, NULL) : NULL;
	if (!d->mountpoint)
		return wfs_err_set(err, -errno, "mountpoint", WFS_NO_OFFSET,
			"the mount point %s: %s", name, strerror(errno));
	if (stat(d->mountpoint, &st) != 0 || !S_ISDIR(st.st_mode))
		return wfs_err_set(err, -ENOTDIR, "mountpoint", WFS_NO_OFFSET,
			"the mount point %s is not a directory", name);
	return 0;
}

static int check_apart(struct wfs_driver *d, struct wfs_err *err)
{
	const char *store = wfs_store_path(d->store);

	if (is_within(store, d->mountpoint))
		return wfs_err_set(err, -EINVAL, "store-under-mount", WFS_NO_OFFSET,
			"the store %s is under the mount point %s, which would hide it", store,
			d->mountpoint);
	if (is_within(d->mountpoint, store))
		return wfs_err_set(err, -EINVAL, "mount-in-store", WFS_NO_OFFSET,
			"the mount point %s is in the store %s; choose one outside", d->mountpoint,
			store);
	return 0;
}

/* ---- mounting ---- */

/* "," and "\" in a path would end the option. */
static char *escape(const char *text)
{
	char *out = malloc(2 * strlen(text) + 1), *p = out;

	if (!out)
		return NULL;
	for (; *text; text++) {
		if (*text == ',' || *text == '\\')
			*p++ = '\\';
		*p++ = *text;
	}
	*p = '\0';
	return out;
}

static char *option_string(struct wfs_driver *d)
{
	const struct wfs_mount_options *o = d->options;
	WFS_AUTO_FREE char *name = escape(wfs_store_path(d->store));

	if (!name)
		return NULL;
	return wfs_format("default_permissions,subtype=weightfs,max_read=%u,fsname=%s%s%s%s%s",
		WFS_MAX_IO, name, o->allow_other ? ",allow_other" : "", o->read_only ? ",ro" : "",
		o->fuse_options ? "," : "", o->fuse_options ? o->fuse_options : "");
}

static int new_session(struct wfs_driver *d, struct wfs_err *err)
{
	WFS_AUTO_FREE char *options = option_string(d);
	const char *argv[] = { "weightfs", "-o", options, d->options->debug ? "-d" : NULL, NULL };
	struct fuse_args args = FUSE_ARGS_INIT(d->options->debug ? 4 : 3, (char **)argv);

	if (!options)
		return -ENOMEM;
	d->session = fuse_session_new(&args, &wfs_ops, sizeof(wfs_ops), d);
	fuse_opt_free_args(&args);
	if (!d->session)
		return wfs_err_set(err, -EINVAL, "mount-options", WFS_NO_OFFSET,
			"libfuse does not take the mount options '%s'", options);
	return 0;
}

static int mount_session(struct wfs_driver *d, struct wfs_err *err)
{
	int ret = new_session(d, err);

	if (ret)
		return ret;
	if (fuse_session_mount(d->session, d->mountpoint) == 0) {
		wfs_passthrough_prepare(d);
		return 0;
	}
	fuse_session_destroy(d->session);
	d->session = NULL;
	if (access("/dev/fuse", R_OK | W_OK) != 0)
		return wfs_err_set(err, -errno, "dev-fuse", WFS_NO_OFFSET,
			"/dev/fuse cannot be opened: %s; load the fuse module, or have root "
			"make it accessible (chmod 666 /dev/fuse)", strerror(errno));
	return wfs_err_set(err, -EIO, "mount-failed", WFS_NO_OFFSET,
		"%s could not be mounted; the line above says why", d->mountpoint);
}

/* By the housekeeper. */
static void tick(void *ctx, bool quiet)
{
	struct wfs_driver *d = ctx;

	wfs_view_tidy(d);
	if (quiet)
		wfs_view_settle_all(d);
}

/* Serve; returns when the mount is gone and every thread has ended. */
static int serve(struct wfs_driver *d, struct wfs_err *err)
{
	pthread_t signals;
	int ret = wfs_notify_start(&d->notify, d->session);

	if (!ret)
		ret = wfs_signal_thread_start(d, &signals);
	if (ret)
		return wfs_err_errno(err, ret, "starting a thread");
	wfs_watchdog_start(&d->watchdog, d);
	d->work.tick = tick;
	d->work.tick_ctx = d;
	if (!wfs_store_is_read_only(d->store))
		ret = wfs_work_start(&d->work);
	wfs_strict_begin();
	if (!ret)
		ret = wfs_loop_run(d, THREADS);
	wfs_strict_end();
	if (ret)
		wfs_err_errno(err, ret, "starting a thread");
	wfs_watchdog_stop(&d->watchdog);
	wfs_signal_thread_stop(signals);
	return ret;
}

/* Who still waits for an answer is told that there will be none. */
static void end_connection(struct wfs_driver *d)
{
	int ends[2];

	wfs_passthrough_end(d);
	/*
	 * libfuse unmounts what is mounted there unless poll(2) says that the connection has failed: what
	 * was below the mount that is gone. A pipe without a reader says the same.
	 */
	if (d->is_unmounted && pipe2(ends, O_CLOEXEC) == 0) {
		close(ends[0]);
		dup3(ends[1], fuse_session_fd(d->session), O_CLOEXEC);
		close(ends[1]);
	}
	fuse_session_unmount(d->session);
}

/* The mount is gone. What was written is sealed, and all of it is on the disk, before we are. */
static void finish(struct wfs_driver *d)
{
	wfs_store_say_ending(d->store);
	wfs_notify_stop(&d->notify);
	end_connection(d);
	wfs_handles_free_all(d);
	wfs_work_stop(&d->work);
	if (!wfs_store_is_read_only(d->store)) {
		wfs_view_settle_all(d);
		wfs_work_seal_all(&d->work);
	}
	wfs_notify_release(&d->notify);
	fuse_session_destroy(d->session);
}

static int open_store(struct wfs_driver *d, struct wfs_err *err)
{
	const char *bits = getenv("WEIGHTFS_TEST_DIGEST_BITS");
	struct wfs_store_options options = {
		.mode = WFS_STORE_WRITE,
		.create = !d->options->read_only,
		.validate = d->options->validate,
		.max_size = d->options->max_size,
		.max_shard_size = d->options->max_shard_size,
		.verbose = d->options->verbose,
		.has_many_users = d->options->allow_other,
		.digest_bits = bits ? (unsigned)atoi(bits) : 0,
		.log = wfs_log_line,
		.log_ctx = &d->log,
	};

	struct wfs_err first = WFS_ERR_INIT;
	int ret = wfs_store_open(d->options->store, &options, &d->store, &first);

	/* A backup that is written is a store of its own from here on: the next backup must not undo that. */
	if (!ret && !d->options->read_only && (ret = wfs_store_drop_note(d->store, WFS_NOTE_BACKUP)) != 0)
		wfs_store_close(d->store);

	/* To read is all that is asked for: then a store that cannot be written will do. */
	if (d->options->read_only && (ret == -EROFS || ret == -EACCES || ret == -EPERM)) {
		options.mode = WFS_STORE_HOLD;
		return wfs_store_open(d->options->store, &options, &d->store, err);
	}
	if (ret)
		*err = first;
	return ret;
}

/* Less than all that was wanted is no reason not to serve. */
static void enter_sandbox(struct wfs_driver *d)
{
	const char *what = NULL;
	int ret = d->options->no_sandbox ? 0 : wfs_sandbox_enter(&what);

	if (ret)
		wfs_log(&d->log, "sandbox: %s: %s", what, strerror(-ret));
}

/* Of a command that goes to the background nobody expects a line. */
static void log_mounted(struct wfs_driver *d)
{
	if (d->log.fd >= 0 || d->ready_fd < 0)
		wfs_log(&d->log, "%s mounted at %s%s", wfs_store_path(d->store), d->mountpoint,
			wfs_store_is_read_only(d->store) ? ", to read only" : "");
}

static int run_mount(struct wfs_driver *d, struct wfs_err *err)
{
	pid_t guard;
	int ret;

	wfs_work_init(&d->work, d->store, &d->log);
	ret = check_apart(d, err);
	if (!ret && d->ready_fd >= 0 && !wfs_store_is_read_only(d->store))
		ret = wfs_log_to_file(&d->log, wfs_store_path(d->store));
	if (!ret)
		ret = mount_session(d, err);
	if (!ret) {
		log_mounted(d);
		guard = wfs_guard_start(d->mountpoint);
		enter_sandbox(d);
		ret = serve(d, err);
		finish(d);
		wfs_guard_stop(guard);
		if (!ret && d->failure.reason) {
			*err = d->failure;
			ret = -ENOTSUP;
		}
		wfs_log(&d->log, "%s unmounted", d->mountpoint);
	}
	wfs_work_release(&d->work);
	return ret;
}

static int run(struct wfs_driver *d, struct wfs_err *err)
{
	sigset_t set;
	int ret;

	wfs_block_signals(&set);
	ret = find_mountpoint(d, err);
	if (!ret)
		ret = wfs_inodes_init(&d->inodes);
	if (!ret)
		ret = wfs_views_init(&d->views);
	wfs_scratches_init(&d->scratches);
	wfs_view_errors_init(&d->view_errors);
	if (ret)
		return ret;
	ret = open_store(d, err);
	if (!ret) {
		int closed;

		ret = run_mount(d, err);
		closed = wfs_store_close(d->store);
		ret = ret ? ret : closed;
	}
	wfs_inodes_release(&d->inodes);
	wfs_views_release(&d->views);
	wfs_scratches_release(&d->scratches);
	wfs_view_errors_release(&d->view_errors);
	return ret;
}

static int run_and_report(const struct wfs_mount_options *options, int ready_fd,
	void (*report)(const struct wfs_err *err))
{
	struct wfs_driver d = { .options = options, .ready_fd = ready_fd, .failure = WFS_ERR_INIT };
	struct wfs_err err = WFS_ERR_INIT;
	int ret;

	wfs_log_init(&d.log);
	wfs_passthrough_init(&d.passthrough);
	sem_init(&d.loop_ends, 0, 0);
	pthread_mutex_init(&d.handles_lock, NULL);
	ret = run(&d, &err);
	if (ret) {
		wfs_err_errno(&err, ret, "mounting %s", options->store);
		if (d.log.fd >= 0)
			wfs_log(&d.log, "%s", err.text);
		report(&err);
	}
	sem_destroy(&d.loop_ends);
	pthread_mutex_destroy(&d.handles_lock);
	free(d.mountpoint);
	wfs_passthrough_release(&d.passthrough);
	wfs_log_release(&d.log);
	return ret ? 1 : 0;
}

/* ---- the background ---- */

/* The child's word, or the end of it. */
static int wait_for_child(int fd, pid_t pid)
{
	char status = 1;
	ssize_t n;

	do
		n = read(fd, &status, 1);
	while (n < 0 && errno == EINTR);
	if (n == 1)
		return status;
	waitpid(pid, NULL, 0); /* it has said why */
	return 1;
}

/* Nothing that the parent has registered for its own end is run here. */
static _Noreturn void leave(int status)
{
#ifdef WFS_COVERAGE
	__gcov_dump();
#endif
	_exit(status);
}

static int run_in_background(const struct wfs_mount_options *options,
	void (*report)(const struct wfs_err *err))
{
	struct wfs_err err = WFS_ERR_INIT;
	int fds[2];
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) != 0 || (pid = fork()) < 0) {
		wfs_err_errno(&err, -errno, "going to the background");
		report(&err);
		return 1;
	}
	if (pid > 0) {
		close(fds[1]);
		return wait_for_child(fds[0], pid);
	}
	close(fds[0]);
	setsid();
	leave(run_and_report(options, fds[1], report));
}

int wfs_session_run(const struct wfs_mount_options *options,
	void (*report)(const struct wfs_err *err))
{
	umask(077); /* what the store is made of is its owner's; modes inside the mount come with the requests */
	if (options->foreground || options->debug)
		return run_and_report(options, -1, report);
	return run_in_background(options, report);
}
