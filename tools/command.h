/*
 * command.h - one subcommand of `weightfs`.
 *
 * tools/weightfs.c has the table; each tools/cmd_X.c defines one entry of it.
 * A command parses its own arguments, prints what it has to say and returns
 * the exit status: 0, 1 for an error (already printed), 2 for wrong usage.
 */
#ifndef WFS_TOOLS_COMMAND_H
#define WFS_TOOLS_COMMAND_H

#include <stdbool.h>

struct command {
	const char *name;
	const char *summary; /* a few words for `weightfs --help` */
	const char *help;    /* all of `weightfs help NAME`, from "usage:" on */
	int (*run)(const struct command *self, int argc, char **argv); /* argv[0] is the name */
};

extern const struct command command_mount;
extern const struct command command_umount;
extern const struct command command_status;
extern const struct command command_ls;
extern const struct command command_fsck;
extern const struct command command_verify;
extern const struct command command_repack;
extern const struct command command_backup;
extern const struct command command_tensors;
extern const struct command command_cat;
extern const struct command command_put;
extern const struct command command_shard;
extern const struct command command_version;

/* For a wrong use of `self`: where help is to be had, on stderr. Returns 2. */
int command_usage(const struct command *self);

/*
 * The one option that all have beside their own: what getopt_long said is
 * `opt` ('h' prints the help and gives 0, all else is wrong usage and gives 2).
 */
int command_other_option(const struct command *self, int opt);

/*
 * The options of a command that has --json and no other of its own. -1: go on, the
 * arguments begin at optind; else the exit status.
 */
int command_json_option(const struct command *self, int argc, char **argv, bool *ret_json);

#endif
