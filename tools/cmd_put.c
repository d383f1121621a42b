/*
 * cmd_put.c - `weightfs put`: a tensor of a model, added or replaced by a file.
 *
 * The file goes to MODEL/.tensors as it is; the driver judges it when it is closed.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "lib/safetensors.h"
#include "tools/command.h"
#include "tools/copy.h"
#include "tools/model_view.h"
#include "tools/ui.h"

/* What tells the kinds of files apart: a header's length, and the first byte of its text. */
#define HEAD (WFS_SAFETENSORS_PREFIX + 1)

struct put {
	struct model_view v;
	const char *tensor;
	const char *source; /* as it was given, for messages */
	int from, to;
	uint8_t head[HEAD];
	size_t head_len;
	char *path; /* of the tensor's file */
};

/* False: it is neither. */
static bool find_kind(const uint8_t *head, size_t len, enum model_view_form *ret)
{
	uint64_t n = 0;

	if (len >= 6 && memcmp(head, "\x93NUMPY", 6) == 0) {
		*ret = MODEL_VIEW_NPY;
		return true;
	}
	for (int i = WFS_SAFETENSORS_PREFIX - 1; i >= 0; i--)
		n = n << 8 | head[i];
	*ret = MODEL_VIEW_SAFETENSORS;
	return len == HEAD && n <= WFS_SAFETENSORS_MAX_HEADER &&
	       strchr("{ \t\r\n", head[WFS_SAFETENSORS_PREFIX]) && head[WFS_SAFETENSORS_PREFIX];
}

static int open_source(struct put *p, const char *file)
{
	bool is_stdin = strcmp(file, "-") == 0;
	enum model_view_form form;
	ssize_t n;

	p->source = is_stdin ? "standard input" : file;
	p->from = is_stdin ? dup(STDIN_FILENO) : open(file, O_RDONLY | O_CLOEXEC);
	n = p->from < 0 ? -errno : copy_read(p->from, p->head, sizeof(p->head));
	if (n < 0)
		return ui_error(NULL, "%s: %s", p->source, strerror((int)-n));
	p->head_len = (size_t)n;
	if (!find_kind(p->head, p->head_len, &form))
		return ui_error("numpy.save writes the one, safetensors' save_file the other",
			"%s: neither a .npy nor a .safetensors file", p->source);
	p->path = model_view_file(&p->v, p->tensor, strlen(p->tensor), form);
	if (!p->path)
		return model_view_too_long(p->tensor, "choose a shorter name");
	return 0;
}

static const char *hint_for(int err)
{
	switch (err) {
	case EROFS:
		return "mount the store without -o ro";
	case EACCES:
	case EPERM:
		return "who may write to the model's directory may put tensors";
	case ENOSPC:
	case EDQUOT:
		return "remove something first; the model is as it was";
	case EBUSY:
		return "`weightfs status` lists the shards that are broken or incomplete; the "
		       "model is "
		       "as it was";
	case EBADMSG:
		return "the model is as it was";
	default:
		return NULL;
	}
}

/* `err` is an errno. The driver has said why where it refused the tensor, or its model takes none.
 */
static int failed(const struct put *p, int err)
{
	WFS_AUTO_FREE char *why = NULL;

	if (err != EBADMSG && err != EBUSY)
		return ui_error(hint_for(err), "%s: %s", p->path, strerror(err));
	why = model_view_reason(&p->v, p->path);
	return ui_error(hint_for(err), "%s is refused as tensor %s: %s", p->source, p->tensor,
		why ? why : strerror(err));
}

static int copy_all(struct put *p)
{
	const struct copy c = {p->from, p->source, p->to, p->path};
	int err = copy_write(p->to, p->head, p->head_len);

	return err ? ui_error(NULL, "%s: %s", p->path, strerror(-err)) : copy_bytes(&c);
}

static int write_tensor(struct put *p)
{
	int status;

	p->to = open(p->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (p->to < 0)
		return failed(p, errno);
	status = copy_all(p);
	/* what is not whole is refused here, too, but the first error is the one to be told */
	if (close(p->to) < 0 && status == 0)
		status = failed(p, errno);
	return status;
}

static int put(const char *model, const char *variant, const char *tensor, const char *file)
{
	struct put p = {.tensor = tensor, .from = -1};
	int status = model_view_open(model, variant, &p.v);

	if (status == 0)
		status = open_source(&p, file);
	if (status == 0)
		status = write_tensor(&p);
	if (p.from >= 0)
		close(p.from);
	free(p.path);
	model_view_release(&p.v);
	return status;
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = {
		{"variant", required_argument, NULL, 'V'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	const char *variant = NULL;
	int opt;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (opt != 'V')
			return command_other_option(self, opt);
		variant = optarg;
	}
	if (argc - optind == 3)
		return put(argv[optind], variant, argv[optind + 1], argv[optind + 2]);
	ui_error(NULL, "put: a model directory, the name of a tensor and a file are needed");
	return command_usage(self);
}

const struct command command_put = {
	.name = "put",
	.summary = "add a tensor to a model, or replace it, by a .npy or .safetensors file",
	.run = run,
	.help = "usage: weightfs put [--variant VARIANT] MODEL TENSOR FILE\n"
		"\n"
		"Makes FILE the tensor TENSOR of the model in the directory MODEL, which is in a\n"
		"mount; one of that name is replaced. Its shards and their index are made anew,\n"
		"without copying other tensors; who has an old shard open goes on reading that.\n"
		"\n"
		"FILE is a .npy file or a safetensors file with one tensor, or - for standard\n"
		"input. Which it is, is seen from its first bytes, not from its name. One that is\n"
		"wrong is refused with the reason, and the model stays as it was.\n"
		"\n"
		"  --variant VARIANT  the shards of a variant: fp16 for model.fp16.safetensors\n"
		"\n"
		"It is the same as writing to MODEL/.tensors/TENSOR.npy or TENSOR.safetensors.\n"
		"\n"
		"examples:\n"
		"  weightfs put ~/models/llama model.norm.weight norm.npy\n"
		"  python make_head.py | weightfs put ~/models/llama lm_head.weight -\n",
};
