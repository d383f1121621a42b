/*
 * cmd_cat.c - `weightfs cat`: one tensor of a model on standard output.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/npy.h"
#include "lib/safetensors.h"
#include "tools/command.h"
#include "tools/copy.h"
#include "tools/model_view.h"
#include "tools/ui.h"

enum output {
	RAW,
	NPY,
	SAFETENSORS,
};

#define MISSING "`weightfs tensors MODEL` lists those that there are"

static bool is_there(const struct model_view *v, const char *tensor, enum model_view_form form)
{
	WFS_AUTO_FREE char *path = model_view_file(v, tensor, strlen(tensor), form);
	struct stat st;

	return path && stat(path, &st) == 0;
}

static int say_missing(const struct model_view *v, const char *tensor, enum output output)
{
	if (output == NPY && is_there(v, tensor, MODEL_VIEW_SAFETENSORS))
		return ui_error("use --safetensors, or neither for the raw bytes",
			"%s: NumPy does not have its dtype", tensor);
	return ui_error(MISSING, "%s: no such tensor in %s", tensor, v->tensors);
}

/* Raw bytes come out of either file; where the one has too long a name, the other may not. */
static char *path_of(const struct model_view *v, const char *tensor, enum output output)
{
	size_t len = strlen(tensor);
	char *path = NULL;

	if (output != NPY)
		path = model_view_file(v, tensor, len, MODEL_VIEW_SAFETENSORS);
	if (!path && output != SAFETENSORS)
		path = model_view_file(v, tensor, len, MODEL_VIEW_NPY);
	return path;
}

/* Where the tensor's bytes begin in its file. 0, or -EIO: it is no such file. */
static int find_data(int fd, uint64_t *ret)
{
	uint8_t head[WFS_NPY_PREFIX] = {0};
	struct stat st;
	uint64_t size, len = 0;

	if (fstat(fd, &st) < 0 || pread(fd, head, sizeof(head), 0) < WFS_SAFETENSORS_PREFIX)
		return -EIO;
	size = (uint64_t)st.st_size;
	if (memcmp(head, "\x93NUMPY", 6) == 0) {
		*ret = wfs_npy_need(head, sizeof(head), size);
		return 0;
	}
	for (int i = WFS_SAFETENSORS_PREFIX - 1; i >= 0; i--)
		len = len << 8 | head[i];
	if (len > WFS_SAFETENSORS_MAX_HEADER || WFS_SAFETENSORS_PREFIX + len > size)
		return -EIO;
	*ret = WFS_SAFETENSORS_PREFIX + len;
	return 0;
}

static int print_file(const char *path, int fd, bool raw)
{
	uint64_t start = 0;
	int err = raw ? find_data(fd, &start) : 0;

	if (!err && lseek(fd, (off_t)start, SEEK_SET) < 0)
		err = -errno;
	if (err)
		return ui_error(NULL, "%s: %s", path, strerror(-err));
	if (copy_bytes(&(struct copy){fd, path, STDOUT_FILENO, "standard output"}) != 0)
		return 1;
	/* a full disk, or a file that weightfs refuses, may be told only now */
	if (close(STDOUT_FILENO) < 0)
		return ui_error(NULL, "standard output: %s", strerror(errno));
	return 0;
}

static int print_tensor(const struct model_view *v, const char *tensor, enum output output)
{
	WFS_AUTO_FREE char *path = path_of(v, tensor, output);
	WFS_AUTO_CLOSE int fd = -1;

	if (!path)
		return model_view_too_long(tensor,
			"read it from its shard; `weightfs tensors MODEL` "
			"says which one that is");
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		return say_missing(v, tensor, output);
	if (fd < 0)
		return ui_error(NULL, "%s: %s", path, strerror(errno));
	return print_file(path, fd, output == RAW);
}

static int cat(const char *model, const char *variant, const char *tensor, enum output output)
{
	struct model_view v;
	int status;

	if (isatty(STDOUT_FILENO))
		return ui_error("send them elsewhere: > FILE or | PROGRAM",
			"%s: these are bytes, which are not written to a terminal", tensor);
	status = model_view_open(model, variant, &v);
	if (status == 0)
		status = print_tensor(&v, tensor, output);
	model_view_release(&v);
	return status;
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = {
		{"npy", no_argument, NULL, 'n'},
		{"safetensors", no_argument, NULL, 's'},
		{"variant", required_argument, NULL, 'V'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	const char *variant = NULL;
	enum output output = RAW;
	int opt;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		enum output wanted = opt == 'n' ? NPY : SAFETENSORS;

		if (opt == 'V') {
			variant = optarg;
			continue;
		}
		if (opt != 'n' && opt != 's')
			return command_other_option(self, opt);
		if (output != RAW && output != wanted) {
			ui_error(NULL, "cat: --npy and --safetensors exclude each other");
			return command_usage(self);
		}
		output = wanted;
	}
	if (argc - optind == 2)
		return cat(argv[optind], variant, argv[optind + 1], output);
	ui_error(NULL, "cat: a model directory and the name of a tensor are needed");
	return command_usage(self);
}

const struct command command_cat = {
	.name = "cat",
	.summary = "a tensor of a model: its bytes, or as a .npy or .safetensors file",
	.run = run,
	.help = "usage: weightfs cat [--npy|--safetensors] [--variant VARIANT] MODEL TENSOR\n"
		"\n"
		"Writes the bytes of TENSOR as they stand in the shards of the directory MODEL,\n"
		"which is in a mount, to standard output: elements in little endian and C order,\n"
		"without any header. Standard output must not be a terminal.\n"
		"\n"
		"  --npy              a .npy file, where NumPy has the dtype\n"
		"  --safetensors      a safetensors file with this tensor alone\n"
		"  --variant VARIANT  the shards of a variant: fp16 for model.fp16.safetensors\n"
		"\n"
		"The same files are in MODEL/.tensors (.tensors@VARIANT), as NAME.npy and\n"
		"NAME.safetensors; a '/' in a tensor's name is written %2F there, a '%' as %25.\n"
		"\n"
		"examples:\n"
		"  weightfs cat ~/models/llama lm_head.weight | sha256sum\n"
		"  weightfs cat --npy ~/models/llama model.norm.weight >norm.npy\n"
		"  weightfs cat --safetensors ~/models/llama lm_head.weight |\n"
		"          weightfs put ~/models/tuned lm_head.weight -\n",
};
