/*
 * weightfs.c - the command: finds the subcommand and hands over.
 *
 * mount(8) and fstab call it as `weightfs STORE DIR -o OPTIONS` (through
 * mount.fuse3): first words that are no name of a command, but paths or
 * options, mean `mount`.
 */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "tools/command.h"
#include "tools/ui.h"

static const struct command *const commands[] = {
	&command_mount,
	&command_umount,
	&command_status,
	&command_ls,
	&command_fsck,
	&command_verify,
	&command_repack,
	&command_backup,
	&command_tensors,
	&command_cat,
	&command_put,
	&command_shard,
	&command_version,
};

static void print_usage(FILE *f)
{
	fputs("usage: weightfs COMMAND [ARGUMENTS]\n"
	      "\n"
	      "A file system for model checkpoints: each tensor is stored once.\n"
	      "\n",
		f);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(commands); i++)
		fprintf(f, "  %-8s  %s\n", commands[i]->name, commands[i]->summary);
	fputs("\n"
	      "`weightfs help COMMAND` says more about each.\n",
		f);
}

int command_usage(const struct command *self)
{
	fprintf(stderr, "  `weightfs help %s` tells how it is used\n", self->name);
	return 2;
}

int command_other_option(const struct command *self, int opt)
{
	if (opt != 'h')
		return command_usage(self);
	fputs(self->help, stdout);
	return ui_finish();
}

int command_json_option(const struct command *self, int argc, char **argv, bool *ret_json)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int opt;

	*ret_json = false;
	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (opt != 'j')
			return command_other_option(self, opt);
		*ret_json = true;
	}
	return -1;
}

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < WFS_ARRAY_SIZE(commands); i++)
		if (!strcmp(commands[i]->name, name))
			return commands[i];
	return NULL;
}

/* How many letters to insert, remove or replace to get from a to b (both short). */
static size_t distance(const char *a, const char *b)
{
	size_t row[32], n = strlen(b);

	if (n >= WFS_ARRAY_SIZE(row))
		return SIZE_MAX;
	for (size_t j = 0; j <= n; j++)
		row[j] = j;
	for (size_t i = 0; a[i]; i++) {
		size_t diagonal = row[0];

		row[0] = i + 1;
		for (size_t j = 0; j < n; j++) {
			size_t best = diagonal + (a[i] != b[j]);

			diagonal = row[j + 1];
			best = WFS_MIN(best, diagonal + 1);
			row[j + 1] = WFS_MIN(best, row[j] + 1);
		}
	}
	return row[n];
}

static int unknown_command(const char *name)
{
	const struct command *best = NULL;
	size_t least = 3; /* farther than two letters is another word */

	for (size_t i = 0; i < WFS_ARRAY_SIZE(commands); i++) {
		size_t d = distance(name, commands[i]->name);

		if (d < least) {
			least = d;
			best = commands[i];
		}
	}
	ui_error(NULL, "%s: no such command", name);
	if (best)
		fprintf(stderr, "  did you mean `weightfs %s`?\n", best->name);
	else
		fputs("  `weightfs --help` lists the commands\n", stderr);
	return 2;
}

static int help(int argc, char **argv)
{
	const struct command *command;

	if (argc < 2) {
		print_usage(stdout);
		return ui_finish();
	}
	command = find_command(argv[1]);
	if (!command)
		return unknown_command(argv[1]);
	fputs(command->help, stdout);
	return ui_finish();
}

/* Is this `weightfs STORE DIR -o …`, perhaps with the options first? */
static bool is_mount_call(int argc, char **argv)
{
	if (strchr(argv[1], '/'))
		return true;
	for (int i = 2; argv[1][0] == '-' && i < argc; i++)
		if (argv[i][0] == '/')
			return true;
	return false;
}

static int run_command(int argc, char **argv)
{
	const struct command *command = find_command(argv[0]);

	if (!command)
		return unknown_command(argv[0]);
	return command->run(command, argc, argv);
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		print_usage(stderr);
		return 2;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help"))
		return help(argc - 1, argv + 1);
	if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V"))
		return command_version.run(&command_version, argc - 1, argv + 1);
	if (find_command(argv[1]))
		return run_command(argc - 1, argv + 1);
	if (is_mount_call(argc, argv))
		return command_mount.run(&command_mount, argc, argv);
	if (argv[1][0] == '-') {
		ui_error("`weightfs --help` lists the commands", "%s: no such option", argv[1]);
		return 2;
	}
	return unknown_command(argv[1]);
}
