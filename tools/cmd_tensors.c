/*
 * cmd_tensors.c - `weightfs tensors`: the tensors of a model, whatever shards they are in.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/command.h"
#include "tools/model_view.h"
#include "tools/ui.h"

/* Dimensions that a line of the table has room for. */
#define SHOWN_DIMS 8

static char *shape_text(const struct model_tensor *t)
{
	char text[SHOWN_DIMS * 24] = "";
	size_t at = 0;

	if (!t->shape)
		return ui_format("-");
	for (size_t i = 0; i < WFS_MIN(t->ndim, SHOWN_DIMS); i++)
		at += (size_t)snprintf(
			text + at, sizeof(text) - at, "%s%" PRIu64, i ? "," : "", t->shape[i]);
	if (t->ndim > SHOWN_DIMS)
		return ui_format("[%s,... %zu in all]", text, t->ndim);
	return ui_format("[%s]", text);
}

static void add_text(struct ui_table *table, const char *text)
{
	if (text)
		ui_table_take(table, ui_escape(text, strlen(text)));
	else
		ui_table_add(table, "-");
}

static int print_table(const struct model_tensors *tensors)
{
	static const char *const heads[] = {"TENSOR", "DTYPE", "SHAPE", "BYTES", "SHARD", "DIGEST"};
	struct ui_table *table = ui_table_new(WFS_ARRAY_SIZE(heads), heads, "lllrll");

	for (size_t i = 0; i < tensors->n; i++) {
		const struct model_tensor *t = &tensors->list[i];

		ui_table_take(table, ui_escape(t->name, t->name_len));
		add_text(table, t->dtype);
		ui_table_take(table, shape_text(t));
		if (t->bytes == UINT64_MAX)
			ui_table_add(table, "-");
		else
			ui_table_add_number(table, t->bytes);
		add_text(table, t->shard);
		add_text(table, t->digest);
	}
	ui_table_print(table, "");
	return ui_finish();
}

static json_t *shape_json(const struct model_tensor *t)
{
	json_t *shape = json_array();

	if (!t->shape) {
		json_decref(shape);
		return json_null();
	}
	for (size_t i = 0; i < t->ndim; i++)
		ui_json_append(shape, ui_json_number(t->shape[i]));
	return shape;
}

static int print_json(const struct model_tensors *tensors)
{
	json_t *list = json_array();

	for (size_t i = 0; i < tensors->n; i++) {
		const struct model_tensor *t = &tensors->list[i];
		json_t *o = json_object();

		ui_json_put(o, "name", ui_json_string(t->name, t->name_len));
		ui_json_put(o, "dtype", ui_json_text(t->dtype));
		ui_json_put(o, "shape", shape_json(t));
		ui_json_put(o, "bytes",
			t->bytes == UINT64_MAX ? json_null() : ui_json_number(t->bytes));
		ui_json_put(o, "shard", ui_json_text(t->shard));
		ui_json_put(o, "digest", ui_json_text(t->digest));
		ui_json_append(list, o);
	}
	return ui_json_print(list);
}

static int list(const char *model, const char *variant, bool json)
{
	struct model_tensors tensors = {.n = 0};
	struct model_view v;
	int status = model_view_open(model, variant, &v);

	if (status == 0)
		status = model_tensors_read(&v, &tensors);
	if (status == 0) {
		status = json ? print_json(&tensors) : print_table(&tensors);
		model_tensors_notes(&v, &tensors);
	}
	model_tensors_release(&tensors);
	model_view_release(&v);
	return status;
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = {
		{"json", no_argument, NULL, 'j'},
		{"variant", required_argument, NULL, 'V'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	const char *variant = NULL;
	bool json = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (opt == 'j')
			json = true;
		else if (opt == 'V')
			variant = optarg;
		else
			return command_other_option(self, opt);
	}
	if (argc - optind == 1)
		return list(argv[optind], variant, json);
	ui_error(NULL, "tensors: one model directory in a mount is needed");
	return command_usage(self);
}

const struct command command_tensors = {
	.name = "tensors",
	.summary = "the tensors of a model, whatever shards they are in",
	.run = run,
	.help = "usage: weightfs tensors [--variant VARIANT] [--json] MODEL\n"
		"\n"
		"Of each tensor in the shards of the directory MODEL, which is in a mount: name,\n"
		"dtype, shape, bytes, the shard that it is in, and digest. While a shard is\n"
		"dirty, its tensors have no digests yet (\"-\"); tensors without bytes have none.\n"
		"MODEL/.tensors has the same tensors as files (`weightfs help cat`). Those whose\n"
		"names are too long for a file are listed last, without digest.\n"
		"\n"
		"What is left out of the model, since it is no valid shard, and what was refused\n"
		"lately, is said on standard error.\n"
		"\n"
		"  --variant VARIANT  the shards of a variant: fp16 for model.fp16.safetensors\n"
		"  --json             a JSON array with an object for each tensor; null: not "
		"known\n"
		"\n"
		"examples:\n"
		"  weightfs tensors ~/models/llama\n"
		"  weightfs tensors --json ~/models/llama | jq -r '.[].name'\n",
};
