/* cmd_backup.c - `weightfs backup`: lib/backup.h, to a directory, a file or a pipe. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/backup.h"
#include "lib/store.h"
#include "tools/command.h"
#include "tools/target.h"
#include "tools/ui.h"

#define PROGRESS_STEP ((uint64_t)8 << 20)

struct backup {
	const char *to;
	bool json;
	uint64_t shown;   /* bytes, when the progress was last shown */
	json_t *unsteady; /* paths */
};

static void show_progress(void *ctx, uint64_t done, uint64_t total)
{
	struct backup *b = ctx;

	if (done >= b->shown && done - b->shown < PROGRESS_STEP && done < total)
		return;
	b->shown = done;
	ui_progress("backup", done, total);
}

static void add_unsteady(void *ctx, const char *path)
{
	struct backup *b = ctx;
	WFS_AUTO_FREE char *shown = ui_escape(path, strlen(path));

	ui_json_append(b->unsteady, ui_json_text(path));
	ui_progress_end();
	fprintf(stderr, "weightfs: note: %s was written all the time; the backup has what was there when it was "
			"copied\n", shown);
}

static int print_json(const struct backup *b, const char *store, const struct wfs_backup_summary *n)
{
	json_t *root = json_object();

	ui_json_put(root, "store", ui_json_text(store));
	ui_json_put(root, "to", ui_json_text(b->to));
	ui_json_put(root, "files_copied", ui_json_number(n->files_copied));
	ui_json_put(root, "bytes_copied", ui_json_number(n->bytes_copied));
	ui_json_put(root, "files_kept", ui_json_number(n->files_kept));
	ui_json_put(root, "bytes_kept", ui_json_number(n->bytes_kept));
	ui_json_put(root, "files_removed", ui_json_number(n->files_removed));
	ui_json_put(root, "database_bytes", ui_json_number(n->database_bytes));
	ui_json_put(root, "rounds", ui_json_number(n->rounds));
	ui_json_put(root, "unsteady", json_incref(b->unsteady));
	return ui_json_print(root);
}

static int print_text(const struct backup *b, const struct wfs_backup_summary *n)
{
	WFS_AUTO_FREE char *copied = ui_size(n->bytes_copied);
	WFS_AUTO_FREE char *kept = ui_size(n->bytes_kept);
	WFS_AUTO_FREE char *database = ui_size(n->database_bytes);

	printf("%s: %" PRIu64 " data file%s copied, %s; %" PRIu64 " were there, %s; %" PRIu64
	       " removed; database %s\n", b->to, n->files_copied, n->files_copied == 1 ? "" : "s", copied,
		n->files_kept, kept, n->files_removed, database);
	return ui_finish();
}

/* ---- an archive ---- */

static bool is_archive(const char *to)
{
	size_t n = strlen(to);
	struct stat st;

	if (stat(to, &st) == 0 && S_ISDIR(st.st_mode))
		return false;
	return strcmp(to, "-") == 0 || (n > 4 && strcmp(to + n - 4, ".tar") == 0);
}

/* Where the databases lie until they are written: beside the archive, or where temporary files do. */
static char *make_work_dir(const char *to)
{
	const char *tmp = getenv("TMPDIR");
	WFS_AUTO_FREE char *copy = ui_format("%s", to);
	const char *parent = strcmp(to, "-") ? dirname(copy) : tmp && *tmp ? tmp : "/var/tmp";
	char *dir = ui_format("%s/.weightfs-backup-XXXXXX", parent);

	if (mkdtemp(dir))
		return dir;
	ui_error(NULL, "%s: %s", parent, strerror(errno));
	free(dir);
	return NULL;
}

/* What is in it, by name; where a signal ends the command, too. */
static const char *const work_names[] = { "archive", "1", "1-journal", "2", "2-journal" };
static char work_paths[WFS_ARRAY_SIZE(work_names) + 1][4096]; /* the last is the directory */

static void remove_work(void)
{
	for (size_t i = 0; i < WFS_ARRAY_SIZE(work_names); i++)
		unlink(work_paths[i]);
	rmdir(work_paths[WFS_ARRAY_SIZE(work_names)]);
}

static void end_by_signal(int sig)
{
	int saved = errno; /* NOLINT(bugprone-signal-handler,cert-sig30-c): it is this thread's own */

	remove_work();
	signal(sig, SIG_DFL);
	raise(sig); /* it comes when this has returned */
	errno = saved; /* NOLINT(bugprone-signal-handler,cert-sig30-c) */
}

static void remove_work_at_signals(const char *dir)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP };

	for (size_t i = 0; i < WFS_ARRAY_SIZE(work_names); i++)
		snprintf(work_paths[i], sizeof(work_paths[i]), "%s/%s", dir, work_names[i]);
	snprintf(work_paths[WFS_ARRAY_SIZE(work_names)], sizeof(work_paths[0]), "%s", dir);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(signals); i++)
		signal(signals[i], end_by_signal);
}

static int sync_parent(const char *path)
{
	WFS_AUTO_FREE char *copy = ui_format("%s", path);
	WFS_AUTO_CLOSE int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 || fsync(fd) != 0 ? -errno : 0;
}

static int run_to_pipe(const char *store, const char *work_dir, const struct wfs_backup_options *options,
	struct wfs_backup_summary *n, struct wfs_err *err)
{
	struct stat st;
	int ret;

	if (isatty(STDOUT_FILENO))
		return wfs_err_set(err, -EINVAL, "terminal", WFS_NO_OFFSET,
			"an archive is not written to a terminal");
	ret = wfs_backup_to_tar(store, STDOUT_FILENO, work_dir, options, n, err);
	/* A file is durable before it counts; a pipe cannot be. */
	if (ret == 0 && fstat(STDOUT_FILENO, &st) == 0 && S_ISREG(st.st_mode) && fsync(STDOUT_FILENO) != 0)
		return wfs_err_errno(err, -errno, "writing the archive");
	return ret;
}

/* Under another name until all of it is on the disk. */
static int run_to_file(const char *store, const char *to, const char *work_dir,
	const struct wfs_backup_options *options, struct wfs_backup_summary *n, struct wfs_err *err)
{
	WFS_AUTO_FREE char *part = ui_format("%s/archive", work_dir);
	WFS_AUTO_CLOSE int fd = open(part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int ret;

	if (fd < 0)
		return wfs_err_errno(err, -errno, "%s", part);
	ret = wfs_backup_to_tar(store, fd, work_dir, options, n, err);
	if (ret == 0 && fsync(fd) != 0)
		ret = wfs_err_errno(err, -errno, "%s", to);
	if (ret == 0 && rename(part, to) != 0)
		ret = wfs_err_errno(err, -errno, "%s", to);
	if (ret == 0 && (ret = sync_parent(to)) != 0)
		wfs_err_errno(err, ret, "%s", to);
	return ret;
}

static int run_archive(const char *store, const char *to, const struct wfs_backup_options *options,
	struct wfs_backup_summary *n, struct wfs_err *err)
{
	WFS_AUTO_FREE char *work_dir = make_work_dir(to);
	int ret;

	if (!work_dir)
		return wfs_err_set(err, -EIO, "said", WFS_NO_OFFSET, "no place for a temporary file");
	signal(SIGPIPE, SIG_IGN);
	remove_work_at_signals(work_dir);
	ret = strcmp(to, "-") == 0 ? run_to_pipe(store, work_dir, options, n, err)
				   : run_to_file(store, to, work_dir, options, n, err);
	remove_work();
	return ret;
}

/* ---- the command ---- */

static int back_up(const char *what, const char *to, bool json)
{
	struct backup b = { .to = to, .json = json, .unsteady = json_array() };
	const struct wfs_backup_options options = { .progress = show_progress, .unsteady = add_unsteady,
		.ctx = &b };
	struct wfs_backup_summary n = { 0 };
	struct wfs_err err = WFS_ERR_INIT;
	struct target target;
	int ret;

	if (target_resolve(what, &target) != 0) {
		json_decref(b.unsteady);
		return 1;
	}
	ret = is_archive(to) ? run_archive(target.store, to, &options, &n, &err)
			     : wfs_backup_to_dir(target.store, to, &options, &n, &err);
	ui_progress_end();
	if (ret < 0)
		ret = ui_error_from(&err, ret, "backup");
	else if (strcmp(to, "-") != 0)
		ret = json ? print_json(&b, target.store, &n) : print_text(&b, &n);
	json_decref(b.unsteady);
	target_release(&target);
	return ret;
}

static int finish(const char *dir)
{
	struct wfs_err err = WFS_ERR_INIT;
	int ret = wfs_backup_finish(dir, &err);

	if (ret < 0)
		return ui_error_from(&err, ret, "backup");
	puts(ret ? "completed: the backup is as the store was when it was made"
		 : "there is nothing to complete");
	return ui_finish();
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = {
		{ "finish", no_argument, NULL, 'f' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool json = false, finishes = false;
	int opt;

	umask(077); /* whoever can read it can read every file in it */
	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (opt == 'j')
			json = true;
		else if (opt == 'f')
			finishes = true;
		else
			return command_other_option(self, opt);
	}
	if (finishes && argc - optind == 1)
		return finish(argv[optind]);
	if (!finishes && argc - optind == 2)
		return back_up(argv[optind], argv[optind + 1], json);
	ui_error(NULL, finishes ? "backup --finish: one directory is needed"
				: "backup: a store and where it goes are needed");
	return command_usage(self);
}

const struct command command_backup = {
	.name = "backup",
	.summary = "copy a store, mounted or not, to a directory, a file or a pipe",
	.run = run,
	.help = "usage: weightfs backup [--json] STORE|MOUNT DIR\n"
		"       weightfs backup [--json] STORE|MOUNT FILE.tar\n"
		"       weightfs backup STORE|MOUNT -\n"
		"       weightfs backup --finish DIR\n"
		"\n"
		"Copies the whole store as it is at one moment, while it is used. DIR is a store\n"
		"itself: mount it, or copy it back (cp -r). Run again with the same DIR, only what\n"
		"is new is copied, and what is gone is removed. FILE.tar, or - for the standard\n"
		"output, is a tar file: mkdir STORE && tar -xf FILE.tar -C STORE.\n"
		"\n"
		"Success means that all of it is on the disk. Stopped or killed, or where the disk\n"
		"is full, DIR has the backup that was there before, and the next run goes on where\n"
		"this one was. Killed in its very last step (some renames), DIR is completed by the\n"
		"next run, or, where the store is lost, by --finish.\n"
		"\n"
		"A file that somebody writes is copied as it is then; it is named if it changed all\n"
		"the time. While a backup runs, space of removed files is not given back, unless\n"
		"the store's disk gets full. A backup that was mounted to be written is a store of\n"
		"its own, and not written by `weightfs backup` any more; mount it with -o ro.\n"
		"\n"
		"  --finish  complete a backup that was interrupted in its last step\n"
		"  --json    what was copied as one JSON object; sizes in bytes\n"
		"\n"
		"examples:\n"
		"  weightfs backup ~/models /backup/models\n"
		"  weightfs backup ~/store - | ssh host 'cat >store.tar'\n",
};
