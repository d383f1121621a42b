/* cmd_fsck.c - `weightfs fsck`: prints what lib/fsck.h finds. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "lib/fsck.h"
#include "tools/command.h"
#include "tools/target.h"
#include "tools/ui.h"

static void print_finding(void *ctx, const struct wfs_fsck_finding *f)
{
	WFS_AUTO_FREE char *where = ui_escape(f->where, strlen(f->where));
	WFS_AUTO_FREE char *text = ui_escape(f->text, strlen(f->text));

	(void)ctx;
	printf("%s: %s: %s\n", f->kind, where, text);
}

static void add_finding(void *ctx, const struct wfs_fsck_finding *f)
{
	json_t *findings = ctx, *o = json_object();

	ui_json_put(o, "kind", ui_json_text(f->kind));
	ui_json_put(o, "where", ui_json_text(f->where));
	ui_json_put(o, "text", ui_json_text(f->text));
	ui_json_append(findings, o);
}

static int print_json(const char *store, const struct wfs_fsck_summary *n, json_t *findings)
{
	json_t *root = json_object(), *summary = json_object();

	ui_json_put(summary, "inodes", ui_json_number(n->inodes));
	ui_json_put(summary, "dirents", ui_json_number(n->dirents));
	ui_json_put(summary, "objects", ui_json_number(n->objects));
	ui_json_put(summary, "manifests", ui_json_number(n->manifests));
	ui_json_put(summary, "data_files", ui_json_number(n->data_files));
	ui_json_put(summary, "findings", ui_json_number(n->findings));
	ui_json_put(root, "store", ui_json_text(store));
	ui_json_put(root, "clean", json_boolean(n->findings == 0));
	ui_json_put(root, "summary", summary);
	ui_json_put(root, "findings", json_incref(findings));
	return ui_json_print(root);
}

static int print_summary(const struct wfs_fsck_summary *n)
{
	printf("checked %" PRIu64 " inodes, %" PRIu64 " names, %" PRIu64 " objects, %" PRIu64
	       " manifests, %" PRIu64 " data files: ",
		n->inodes, n->dirents, n->objects, n->manifests, n->data_files);
	if (n->findings == 0)
		puts("clean");
	else
		printf("%" PRIu64 " finding%s\n", n->findings, n->findings == 1 ? "" : "s");
	return ui_finish();
}

static int check(const char *what, const struct wfs_fsck_options *options, bool json)
{
	json_t *findings = json ? json_array() : NULL;
	struct wfs_fsck_summary n = { 0 };
	struct wfs_err err = WFS_ERR_INIT;
	struct target target;
	int ret;

	ret = target_resolve(what, &target);
	if (ret != 0)
		goto out;
	ret = wfs_fsck(target.store, options, json ? add_finding : print_finding, findings, &n,
		&err);
	if (ret < 0) {
		ret = ui_error_from(&err, ret, "fsck");
		goto out;
	}
	ret = json ? print_json(target.store, &n, findings) : print_summary(&n);
	if (n.findings > 0)
		ret = 1;
out:
	json_decref(findings);
	target_release(&target);
	return ret;
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "bytes", no_argument, NULL, 'b' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct wfs_fsck_options options = { .check_bytes = false };
	bool json = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "bh", long_options, NULL)) != -1) {
		if (opt == 'b')
			options.check_bytes = true;
		else if (opt == 'j')
			json = true;
		else
			return command_other_option(self, opt);
	}
	if (argc - optind == 1)
		return check(argv[optind], &options, json);
	ui_error(NULL, "fsck: one store is needed");
	return command_usage(self);
}

const struct command command_fsck = {
	.name = "fsck",
	.summary = "check a store; changes nothing",
	.run = run,
	.help = "usage: weightfs fsck [-b] [--json] STORE|DIR\n"
		"\n"
		"Checks that everything in the store adds up: names, counts of references,\n"
		"manifests, data files. Looks only and changes nothing; the store may be\n"
		"mounted. Exit status 0: clean; 1: findings, or it could not be checked.\n"
		"\n"
		"  -b, --bytes  also read every object and compare it with its digest\n"
		"  --json       findings and figures as one JSON object\n"
		"\n"
		"example:\n"
		"  weightfs fsck --bytes ~/store\n",
};
