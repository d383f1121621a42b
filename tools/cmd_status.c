/* cmd_status.c - `weightfs status`: figures of a store, and what a person should know. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lib/recover.h"
#include "fs/requests.h"
#include "lib/store.h"
#include "tools/command.h"
#include "tools/target.h"
#include "tools/ui.h"

/* What is gathered before anything is printed. */
struct status {
	struct target target;
	struct wfs_store_stats stats;
	struct wfs_recovery recovery;
	bool in_use; /* a driver has it open */
	bool failed; /* it changes nothing any more: the disk failed */
	int pid;     /* of that driver; 0: unknown */
	char *passthrough; /* "on", or why it is off; NULL: unknown */
	bool verbose;
	json_t *reports;        /* for --json, else NULL */
	json_t *hanging;        /* requests; for --json, else NULL */
	struct ui_table *table; /* for people, else NULL */
	uint64_t left_out;      /* reports that only -v shows */
};

/* ---- JSON ---- */

static void add_json_report(json_t *reports, const struct wfs_store_report *r)
{
	json_t *o = json_object();

	ui_json_put(o, "path", ui_json_text(r->path));
	ui_json_put(o, "size", ui_json_number(r->size));
	ui_json_put(o, "state", ui_json_text(r->state));
	ui_json_put(o, "verdict", ui_json_text(r->verdict));
	ui_json_put(o, "reason", ui_json_text(r->reason));
	ui_json_put(o, "detail", ui_json_text(r->detail));
	ui_json_append(reports, o);
}

static uint64_t saved_bytes(const struct wfs_store_stats *s)
{
	return s->logical_bytes > s->stored_bytes ? s->logical_bytes - s->stored_bytes : 0;
}

/* Seconds since 1970; null: there was none. */
static json_t *json_of_recovery(const struct wfs_recovery *r)
{
	json_t *o = r->when_ns ? json_object() : json_null();

	if (!r->when_ns)
		return o;
	ui_json_put(o, "time", json_real((double)r->when_ns / 1e9));
	ui_json_put(o, "unlinked", ui_json_number(r->unlinked));
	ui_json_put(o, "dirty", ui_json_number(r->dirty));
	ui_json_put(o, "reported", ui_json_number(r->reported));
	return o;
}

static int print_json(struct status *s)
{
	const struct wfs_store_stats *n = &s->stats;
	const struct {
		const char *key;
		uint64_t value;
	} numbers[] = {
		{ "format_version", n->format_version },
		{ "files", n->files },
		{ "directories", n->directories },
		{ "dirty", n->dirty },
		{ "sealed", n->sealed },
		{ "incomplete", n->incomplete },
		{ "wrong", n->wrong },
		{ "damaged", n->damaged },
		{ "damaged_objects", n->damaged_objects },
		{ "warned", n->warned },
		{ "logical_bytes", n->logical_bytes },
		{ "stored_bytes", n->stored_bytes },
		{ "saved_bytes", saved_bytes(n) },
		{ "dirty_bytes", n->dirty_bytes },
		{ "pending_bytes", n->pending_bytes },
		{ "held_bytes", n->held_bytes },
		{ "shared_bytes", n->shared_bytes },
		{ "copied_bytes", n->copied_bytes },
		{ "disk_bytes", n->disk_bytes },
		{ "objects", n->objects },
		{ "manifests", n->manifests },
		{ "data_files", n->data_files },
	};
	json_t *root = json_object();

	ui_json_put(root, "store", ui_json_text(s->target.store));
	ui_json_put(root, "mounted", json_boolean(s->in_use));
	ui_json_put(root, "failed", json_boolean(s->failed));
	ui_json_put(root, "mountpoint", ui_json_text(s->target.mountpoint));
	ui_json_put(root, "passthrough", ui_json_text(s->in_use ? s->passthrough : NULL));
	for (size_t i = 0; i < WFS_ARRAY_SIZE(numbers); i++)
		ui_json_put(root, numbers[i].key, ui_json_number(numbers[i].value));
	ui_json_put(root, "last_recovery", json_of_recovery(&s->recovery));
	ui_json_put(root, "hanging", json_incref(s->hanging));
	ui_json_put(root, "reports", json_incref(s->reports));
	return ui_json_print(root);
}

/* ---- text ---- */

static void add_row(struct status *s, const struct wfs_store_report *r)
{
	bool quiet = !r->reason && (!strcmp(r->verdict, "none") || !strcmp(r->verdict, "valid") ||
					   !strcmp(r->verdict, "opaque"));

	if (quiet && !s->verbose) {
		s->left_out++;
		return;
	}
	ui_table_take(s->table, ui_escape(r->path, strlen(r->path)));
	ui_table_take(s->table, ui_size(r->size));
	ui_table_add(s->table, r->state);
	ui_table_add(s->table, r->verdict);
	ui_table_take(s->table, ui_format("%s%s%s", r->reason ? r->reason : "-",
		r->detail ? ": " : "", r->detail ? r->detail : ""));
}

static void print_place(const struct status *s)
{
	WFS_AUTO_FREE char *store = ui_escape(s->target.store, strlen(s->target.store));
	WFS_AUTO_FREE char *dir = NULL;

	printf("store    %s (format %" PRIu32 ")\n", store, s->stats.format_version);
	if (!s->target.mountpoint) {
		if (!s->in_use)
			puts("mounted  no");
		else
			printf("mounted  not where it is seen from here; in use by process %d\n",
				s->pid);
		return;
	}
	dir = ui_escape(s->target.mountpoint, strlen(s->target.mountpoint));
	if (s->in_use)
		printf("mounted  %s\n", dir);
	else
		printf("mounted  %s, but its driver is gone: weightfs umount it\n", dir);
	if (s->failed)
		puts("FAILED   the disk did not keep the database's log: nothing can be changed until the "
		     "store is unmounted and mounted again");
	if (s->in_use && s->passthrough && !strcmp(s->passthrough, "on"))
		puts("speed    passthrough is on: files are read and written at the speed of the disk");
	else if (s->in_use && s->passthrough)
		printf("speed    passthrough is off: %s\n", s->passthrough);
}

static void print_recovery(const struct wfs_recovery *r)
{
	time_t when = (time_t)(r->when_ns / 1000000000);
	struct tm tm;
	char text[32];

	if (!r->when_ns || !localtime_r(&when, &tm) ||
		strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &tm) == 0)
		return;
	printf("recovery %s, after an unclean stop: %" PRIu64 " unlinked file%s removed, %" PRIu64
	       " dirty kept, %" PRIu64 " of them reported\n", text, r->unlinked,
		r->unlinked == 1 ? "" : "s", r->dirty, r->reported);
}

static void print_counts(const struct wfs_store_stats *n)
{
	const struct {
		uint64_t count;
		const char *text;
	} parts[] = {
		{ n->dirty, "dirty" },
		{ n->incomplete, "incomplete" },
		{ n->wrong, "wrong" },
		{ n->damaged, "DAMAGED" },
		{ n->warned, "with a warning" },
	};

	printf("files    %" PRIu64 " in %" PRIu64 " director%s: %" PRIu64 " sealed", n->files,
		n->directories, n->directories == 1 ? "y" : "ies", n->sealed);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(parts); i++)
		if (parts[i].count || i == 0) /* "0 dirty" is worth saying */
			printf(", %" PRIu64 " %s", parts[i].count, parts[i].text);
	printf("\ncontent  %" PRIu64 " objects, %" PRIu64 " manifests, %" PRIu64 " data files\n\n",
		n->objects, n->manifests, n->data_files);
}

static void add_bytes(struct ui_table *t, const char *what, uint64_t bytes, char *remark)
{
	ui_table_add(t, what);
	ui_table_take(t, ui_size(bytes));
	ui_table_take(t, remark);
}

static char *ratio_of(const struct wfs_store_stats *n)
{
	if (n->stored_bytes == 0)
		return ui_format("by storing each tensor once");
	return ui_format("by storing each tensor once (ratio %.2f)",
		(double)n->logical_bytes / (double)n->stored_bytes);
}

static void print_bytes(const struct wfs_store_stats *n)
{
	struct ui_table *t = ui_table_new(3, NULL, "lrl");

	add_bytes(t, "logical", n->logical_bytes, ui_format("what the files add up to"));
	add_bytes(t, "stored", n->stored_bytes, ui_format("what is kept of them"));
	add_bytes(t, "saved", saved_bytes(n), ratio_of(n));
	if (n->dirty_bytes)
		add_bytes(t, "dirty", n->dirty_bytes,
			ui_format("of what is stored: not sealed yet"));
	if (n->copied_bytes)
		add_bytes(t, "copied", n->copied_bytes,
			ui_format("of the disk: stored twice, so that files are read directly"));
	if (n->pending_bytes)
		add_bytes(t, "pending", n->pending_bytes,
			ui_format("of the disk: about to be given back"));
	if (n->held_bytes)
		add_bytes(t, "held", n->held_bytes, ui_format("of the disk, which cannot punch holes: "
			"given back with the rest of their data files"));
	add_bytes(t, "disk", n->disk_bytes, ui_format("blocks of data files and database"));
	ui_table_print(t, "");
}

static int print_text(struct status *s)
{
	const struct wfs_store_stats *n = &s->stats;

	print_place(s);
	print_recovery(&s->recovery);
	print_counts(n);
	print_bytes(n);
	if (n->dirty + n->incomplete + n->wrong + n->damaged + n->warned > 0)
		putchar('\n');
	ui_table_print(s->table, "");
	s->table = NULL;
	if (s->left_out)
		printf("%" PRIu64 " dirty file%s with nothing to report; -v lists %s\n",
			s->left_out, s->left_out == 1 ? "" : "s",
			s->left_out == 1 ? "it" : "them");
	return ui_finish();
}

/* ---- requests that hang ---- */

static double seconds_of(const struct wfs_request *r)
{
	return (double)(wfs_requests_now() - r->since_ns) / 1e9;
}

static void add_json_request(json_t *list, const struct wfs_request *r, const char *waits_for)
{
	json_t *o = json_object();
	char caller[32];

	wfs_request_caller_name(r, caller);
	ui_json_put(o, "operation", ui_json_text(wfs_request_name(r->opcode)));
	ui_json_put(o, "inode", ui_json_number(r->ino));
	ui_json_put(o, "pid", ui_json_number(r->caller));
	ui_json_put(o, "caller", ui_json_text(caller));
	ui_json_put(o, "seconds", json_real(seconds_of(r)));
	ui_json_put(o, "waits_for", ui_json_text(waits_for));
	ui_json_append(list, o);
}

static void show_request(struct status *s, const struct wfs_request *r, const char *waits_for)
{
	char text[WFS_REQUEST_TEXT];

	if (s->hanging) {
		add_json_request(s->hanging, r, waits_for);
		return;
	}
	wfs_request_describe(r, NULL, text);
	printf("HANGS    for %.0f s: %s; it waits for %s\n", seconds_of(r), text, waits_for);
}

/*
 * Looked at, not asked: a driver that hangs does not answer. Before all else, since the
 * database may be what hangs.
 */
static void show_hanging(struct status *s)
{
	struct wfs_requests *all = NULL;
	struct wfs_request r;
	char waits_for[WFS_REQUEST_TEXT];
	int pid;

	if (wfs_store_is_locked(s->target.store, &pid) && pid > 0)
		all = wfs_requests_of(pid);
	for (size_t i = 0; all && i < WFS_REQUEST_SLOTS; i++) {
		if (!wfs_request_look(&all->slots[i], &r) ||
			wfs_requests_now() - r.since_ns < WFS_REQUEST_SLOW_NS)
			continue;
		wfs_request_waits_for(all, pid, &r, waits_for);
		show_request(s, &r, waits_for);
	}
	wfs_requests_free(all);
	fflush(stdout);
}

/* ---- the command ---- */

static int add_report(void *ctx, const struct wfs_store_report *report)
{
	struct status *s = ctx;

	if (s->reports)
		add_json_report(s->reports, report);
	else
		add_row(s, report);
	return 0;
}

static int gather(struct status *s)
{
	const struct wfs_store_options options = { .mode = WFS_STORE_READ };
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_store *store;
	int ret;

	ret = wfs_store_open(s->target.store, &options, &store, &err);
	if (ret < 0)
		return ui_error_from(&err, ret, "status");
	ret = wfs_store_stats(store, &s->stats, &err);
	if (ret == 0)
		ret = wfs_store_each_report(store, add_report, s, &err);
	if (ret == 0)
		ret = wfs_store_read_note(store, WFS_NOTE_PASSTHROUGH, &s->passthrough);
	if (ret == 0)
		ret = wfs_recovery_read(store, &s->recovery);
	wfs_store_close(store);
	/* A mount that only reads holds no lock that could be seen; it answers. */
	s->in_use = wfs_store_is_locked(s->target.store, &s->pid) ||
		    (s->target.mountpoint && access(s->target.mountpoint, F_OK) == 0);
	s->failed = s->in_use && wfs_store_has_failed(s->target.store);
	return ret < 0 ? ui_error_from(&err, ret, "status") : 0;
}

static int show(const char *what, bool json, bool verbose)
{
	static const char *const heads[] = { "FILE", "SIZE", "STATE", "VERDICT", "REASON" };
	struct status s = { .verbose = verbose };
	int ret;

	if (target_resolve(what, &s.target) != 0)
		return 1;
	if (json)
		s.hanging = json_array();
	show_hanging(&s);
	if (json)
		s.reports = json_array();
	else
		s.table = ui_table_new(WFS_ARRAY_SIZE(heads), heads, "lrlll");
	ret = gather(&s);
	if (ret == 0)
		ret = json ? print_json(&s) : print_text(&s);
	free(s.passthrough);
	json_decref(s.reports);
	json_decref(s.hanging);
	ui_table_free(s.table);
	target_release(&s.target);
	return ret;
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool json = false, verbose = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "vh", options, NULL)) != -1) {
		if (opt == 'j')
			json = true;
		else if (opt == 'v')
			verbose = true;
		else
			return command_other_option(self, opt);
	}
	if (argc - optind == 1)
		return show(argv[optind], json, verbose);
	ui_error(NULL, "status: one store or mounted directory is needed");
	return command_usage(self);
}

const struct command command_status = {
	.name = "status",
	.summary = "files and bytes of a store, and what is wrong with which file",
	.run = run,
	.help = "usage: weightfs status [-v] [--json] STORE|DIR\n"
		"\n"
		"Shows the store STORE, or the one that is mounted at DIR: how many files are\n"
		"sealed or still dirty, what their sizes add up to, what is stored and saved.\n"
		"Then each file that a person should know about, with the reason: incomplete,\n"
		"wrong or damaged files, and valid ones with a warning. Works beside a mount.\n"
		"Requests that its driver is at for more than 5 seconds come first, with what\n"
		"they wait for.\n"
		"\n"
		"  -v, --verbose  also list dirty files that there is nothing to say about\n"
		"  --json         all of it as one JSON object; sizes in bytes\n"
		"\n"
		"examples:\n"
		"  weightfs status ~/models\n"
		"  weightfs status --json ~/store | jq .saved_bytes\n",
};
