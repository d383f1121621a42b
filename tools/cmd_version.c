/* cmd_version.c - `weightfs version`: of the program and of what it is linked with. */
#include <sqlite3.h>
#include <stdio.h>
#include <xxhash.h>

#include "lib/db.h"
#include "tools/command.h"
#include "tools/ui.h"

static int print_json(void)
{
	json_t *root = json_object();

	ui_json_put(root, "version", ui_json_text(WFS_VERSION));
	ui_json_put(root, "format_version", ui_json_number(WFS_DB_VERSION));
	ui_json_put(root, "sqlite", ui_json_text(sqlite3_libversion()));
	ui_json_put(root, "jansson", ui_json_text(jansson_version_str()));
	ui_json_put(root, "xxhash", ui_json_number(XXH_versionNumber()));
	return ui_json_print(root);
}

static int run(const struct command *self, int argc, char **argv)
{
	bool json;
	int status = command_json_option(self, argc, argv, &json);

	if (status >= 0)
		return status;
	if (json)
		return print_json();
	printf("weightfs %s (store format %d; SQLite %s, jansson %s)\n", WFS_VERSION,
		WFS_DB_VERSION, sqlite3_libversion(), jansson_version_str());
	return ui_finish();
}

const struct command command_version = {
	.name = "version",
	.summary = "versions of the program, of the store's format and of libraries",
	.run = run,
	.help = "usage: weightfs version [--json]\n"
		"\n"
		"Prints the version of weightfs, the format version of the stores that it\n"
		"makes, and the versions of the libraries that it runs with.\n",
};
