/* cmd_fsck.c - `weightfs fsck`: prints what lib/fsck.h finds and repairs. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "lib/fsck.h"
#include "tools/command.h"
#include "tools/target.h"
#include "tools/ui.h"

/* What is told, to people or as JSON. */
struct report {
	bool json, dry_run;
	json_t *findings, *actions, *left;
};

static void tell(bool json, json_t *list, const char *before, const struct wfs_fsck_finding *f)
{
	WFS_AUTO_FREE char *where = ui_escape(f->where, strlen(f->where));
	WFS_AUTO_FREE char *text = ui_escape(f->text, strlen(f->text));
	json_t *o;

	if (!json) {
		printf("%s%s: %s: %s\n", before, f->kind, where, text);
		return;
	}
	o = json_object();
	ui_json_put(o, "kind", ui_json_text(f->kind));
	ui_json_put(o, "where", ui_json_text(f->where));
	ui_json_put(o, "text", ui_json_text(f->text));
	ui_json_append(list, o);
}

static void tell_finding(void *ctx, const struct wfs_fsck_finding *f)
{
	struct report *r = ctx;

	tell(r->json, r->findings, "", f);
}

static void tell_action(void *ctx, const struct wfs_fsck_finding *f)
{
	struct report *r = ctx;

	tell(r->json, r->actions, r->dry_run ? "would repair " : "repaired ", f);
}

static void tell_left(void *ctx, const struct wfs_fsck_finding *f)
{
	struct report *r = ctx;

	tell(r->json, r->left, "NOT REPAIRED ", f);
}

static json_t *summary_json(const struct wfs_fsck_summary *n)
{
	json_t *summary = json_object();

	ui_json_put(summary, "inodes", ui_json_number(n->inodes));
	ui_json_put(summary, "dirents", ui_json_number(n->dirents));
	ui_json_put(summary, "objects", ui_json_number(n->objects));
	ui_json_put(summary, "manifests", ui_json_number(n->manifests));
	ui_json_put(summary, "data_files", ui_json_number(n->data_files));
	ui_json_put(summary, "findings", ui_json_number(n->findings));
	return summary;
}

/* `repaired` is NULL where nothing was to be. */
static int print_json(const char *store, const struct report *r, const struct wfs_fsck_summary *n,
	const struct wfs_fsck_repaired *repaired)
{
	json_t *root = json_object(), *repair = json_object();
	uint64_t left = repaired ? repaired->left : n->findings;

	ui_json_put(root, "store", ui_json_text(store));
	ui_json_put(root, "clean", json_boolean(left == 0));
	ui_json_put(root, "summary", summary_json(n));
	ui_json_put(root, "findings", json_incref(r->findings));
	if (!repaired) {
		json_decref(repair);
		return ui_json_print(root);
	}
	ui_json_put(repair, "dry_run", json_boolean(r->dry_run));
	ui_json_put(repair, "kept", ui_json_text(repaired->kept[0] ? repaired->kept : NULL));
	ui_json_put(repair, "actions", json_incref(r->actions));
	ui_json_put(repair, "left", json_incref(r->left));
	ui_json_put(root, "repair", repair);
	return ui_json_print(root);
}

static void print_summary(const struct wfs_fsck_summary *n)
{
	printf("checked %" PRIu64 " inodes, %" PRIu64 " names, %" PRIu64 " objects, %" PRIu64
	       " manifests, %" PRIu64 " data files: ",
		n->inodes, n->dirents, n->objects, n->manifests, n->data_files);
	if (n->findings == 0)
		puts("clean");
	else
		printf("%" PRIu64 " finding%s\n", n->findings, n->findings == 1 ? "" : "s");
}

static void print_repaired(const char *store, const struct wfs_fsck_repaired *n, bool dry_run)
{
	if (n->before.findings == 0)
		return;
	if (dry_run) {
		printf("nothing was changed; %" PRIu64 " repairs would be made\n", n->actions);
		return;
	}
	printf("%" PRIu64 " repairs; %s\n", n->actions,
		n->left ? "what is left is marked NOT REPAIRED" : "the store is clean");
	printf("the database as it was is kept in %s/%s\n", store, n->kept);
	printf("  to go back, before the next mount: cp %s/%s/weightfs.db* %s/\n", store, n->kept, store);
	puts("  files that lost their place are in lost+found of the mount, with a text that says why");
}

static int check(const struct target *target, const struct wfs_fsck_options *options, struct report *r)
{
	struct wfs_fsck_summary n = { 0 };
	struct wfs_err err = WFS_ERR_INIT;
	int ret = wfs_fsck(target->store, options, tell_finding, r, &n, &err);

	if (ret < 0)
		return ui_error_from(&err, ret, "fsck");
	if (r->json) {
		ret = print_json(target->store, r, &n, NULL);
	} else {
		print_summary(&n);
		ret = ui_finish();
	}
	return n.findings > 0 ? 1 : ret;
}

static int repair(const struct target *target, const struct wfs_fsck_options *options, struct report *r)
{
	struct wfs_fsck_repair how = { .dry_run = r->dry_run, .found = tell_finding,
		.done = tell_action, .left = tell_left, .ctx = r };
	struct wfs_fsck_repaired n;
	struct wfs_err err = WFS_ERR_INIT;
	int ret = wfs_fsck_repair(target->store, options, &how, &n, &err);

	if (ret < 0)
		return ui_error_from(&err, ret, "fsck --repair");
	if (r->json) {
		ret = print_json(target->store, r, &n.before, &n);
	} else {
		print_summary(&n.before);
		print_repaired(target->store, &n, r->dry_run);
		ret = ui_finish();
	}
	return n.left > 0 ? 1 : ret;
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "bytes", no_argument, NULL, 'b' },
		{ "repair", no_argument, NULL, 'r' },
		{ "dry-run", no_argument, NULL, 'n' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct wfs_fsck_options options = { .check_bytes = false };
	struct report r = { .json = false };
	struct target target;
	bool repairs = false;
	int opt, ret;

	while ((opt = getopt_long(argc, argv, "bnh", long_options, NULL)) != -1) {
		if (opt == 'b')
			options.check_bytes = true;
		else if (opt == 'r')
			repairs = true;
		else if (opt == 'n')
			r.dry_run = true;
		else if (opt == 'j')
			r.json = true;
		else
			return command_other_option(self, opt);
	}
	if (argc - optind != 1 || (r.dry_run && !repairs)) {
		ui_error(NULL, argc - optind != 1 ? "fsck: one store is needed"
						  : "fsck: --dry-run goes with --repair");
		return command_usage(self);
	}
	ret = target_resolve(argv[optind], &target);
	r.findings = json_array();
	r.actions = json_array();
	r.left = json_array();
	if (ret == 0)
		ret = repairs ? repair(&target, &options, &r) : check(&target, &options, &r);
	json_decref(r.findings);
	json_decref(r.actions);
	json_decref(r.left);
	target_release(&target);
	return ret;
}

const struct command command_fsck = {
	.name = "fsck",
	.summary = "check a store, and repair it",
	.run = run,
	.help = "usage: weightfs fsck [-b] [--repair [-n]] [--json] STORE|DIR\n"
		"\n"
		"Checks that everything in the store adds up: names, counts of references,\n"
		"manifests, data files. Without --repair it looks only, and the store may be\n"
		"mounted. Exit status 0: clean, or repaired so; 1: findings, or it could not\n"
		"be checked.\n"
		"\n"
		"  -b, --bytes    also read every object and compare it with its digest\n"
		"      --repair   make it add up again; the store must not be mounted. Nothing is\n"
		"                 lost: the database as it was is kept in STORE/before-repair-DATE,\n"
		"                 what has no place any more is in lost+found of the mount, and\n"
		"                 files whose bytes are gone say so (user.weightfs.error)\n"
		"  -n, --dry-run  with --repair: only say what would be done\n"
		"      --json     findings, repairs and figures as one JSON object\n"
		"\n"
		"examples:\n"
		"  weightfs fsck --bytes ~/store\n"
		"  weightfs fsck --repair --dry-run ~/store\n",
};
