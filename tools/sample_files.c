#include "tools/sample.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/ui.h"

uint64_t sample_inner_size(const struct sample *m)
{
	return m->hidden / SAMPLE_HEAD * 172; /* 8/3 of hidden, about: as Llama has it */
}

uint64_t sample_kv_heads(const struct sample *m)
{
	uint64_t heads = m->hidden / SAMPLE_HEAD;

	return heads % 2 ? heads : heads / 2;
}

/* ---- files ---- */

int sample_fail(const char *path, int error)
{
	fprintf(stderr, "sample-model: %s: %s\n", path, strerror(error));
	return 1;
}

int sample_write_all(int fd, const void *buf, size_t len)
{
	const char *p = buf;

	while (len > 0) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int sample_finish(const struct sample *m, int fd, const char *tmp, const char *name, int ret)
{
	WFS_AUTO_FREE char *path = ui_format("%s/%s", m->dir, name);

	if (ret == 0 && fchmod(fd, 0644) < 0)
		ret = -errno;
	if (ret == 0 && rename(tmp, path) < 0)
		ret = -errno;
	if (close(fd) < 0 && ret == 0)
		ret = -errno;
	if (ret == 0)
		return 0;
	unlink(tmp);
	return sample_fail(path, -ret);
}

int sample_open(const struct sample *m, char **ret_tmp)
{
	char *tmp = ui_format("%s/.tmpXXXXXX", m->dir);
	int fd = mkostemp(tmp, O_CLOEXEC);

	if (fd < 0) {
		sample_fail(tmp, errno);
		free(tmp);
		return -1;
	}
	*ret_tmp = tmp;
	return fd;
}

static int write_text(const struct sample *m, const char *name, const char *text)
{
	WFS_AUTO_FREE char *tmp = NULL;
	int fd = sample_open(m, &tmp);

	if (fd < 0)
		return 1;
	return sample_finish(m, fd, tmp, name, sample_write_all(fd, text, strlen(text)));
}

int sample_write_json(const struct sample *m, const char *name, json_t *value)
{
	const size_t flags = JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(15);
	WFS_AUTO_FREE char *text = value ? json_dumps(value, flags) : NULL;
	WFS_AUTO_FREE char *line = NULL;

	json_decref(value);
	if (!text)
		return sample_fail(name, ENOMEM);
	line = ui_format("%s\n", text);
	return write_text(m, name, line);
}

/* ---- the small files ---- */

/* The keys of a Llama config that are numbers of this model. */
static void put_sizes(const struct sample *m, json_t *config)
{
	const struct {
		const char *key;
		uint64_t value;
	} sizes[] = {
		{ "bos_token_id", 0 },
		{ "eos_token_id", 1 },
		{ "head_dim", SAMPLE_HEAD },
		{ "hidden_size", m->hidden },
		{ "intermediate_size", sample_inner_size(m) },
		{ "max_position_embeddings", 2048 },
		{ "num_attention_heads", m->hidden / SAMPLE_HEAD },
		{ "num_hidden_layers", m->layers },
		{ "num_key_value_heads", sample_kv_heads(m) },
		{ "vocab_size", SAMPLE_VOCAB },
	};

	for (size_t i = 0; i < WFS_ARRAY_SIZE(sizes); i++)
		json_object_set_new(config, sizes[i].key, ui_json_number(sizes[i].value));
}

int sample_write_config(const struct sample *m)
{
	json_t *config = json_pack("{s:[s],s:s,s:s,s:s}", "architectures", "LlamaForCausalLM",
		"model_type", "llama", "hidden_act", "silu", "dtype",
		m->dtype == WFS_DTYPE_BF16 ? "bfloat16" : "float32");

	put_sizes(m, config);
	json_object_set_new(config, "attention_bias", json_false());
	json_object_set_new(config, "initializer_range", json_real(0.02));
	json_object_set_new(config, "rms_norm_eps", json_real(1e-5));
	json_object_set_new(config, "rope_theta", json_real(10000));
	json_object_set_new(config, "tie_word_embeddings", json_false());
	json_object_set_new(config, "use_cache", json_true());
	return sample_write_json(m, "config.json", config);
}

int sample_write_generation_config(const struct sample *m)
{
	return sample_write_json(m, "generation_config.json",
		json_pack("{s:i,s:i}", "bos_token_id", 0, "eos_token_id", 1));
}

/* The code point that stands for a byte in byte-level vocabularies (GPT-2's table). */
static uint32_t byte_symbol(unsigned byte, unsigned *shifted)
{
	if ((byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae)
		return byte;
	return 256 + (*shifted)++;
}

/* Two special tokens and one token for each byte. */
static json_t *make_vocabulary(void)
{
	json_t *vocabulary = json_pack("{s:i,s:i}", "<s>", 0, "</s>", 1);
	unsigned shifted = 0;

	for (unsigned byte = 0; byte < 256; byte++) {
		uint32_t c = byte_symbol(byte, &shifted);
		char text[3] = { (char)c, 0, 0 };

		if (c >= 0x80) {
			text[0] = (char)(0xc0 | c >> 6);
			text[1] = (char)(0x80 | (c & 0x3f));
		}
		json_object_set_new(vocabulary, text, json_integer(2 + byte));
	}
	return vocabulary;
}

static json_t *special_token(int id, const char *text)
{
	return json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", id, "content", text, "single_word",
		0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1);
}

static json_t *byte_level(void)
{
	return json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0,
		"trim_offsets", 1, "use_regex", 1);
}

int sample_write_tokenizer(const struct sample *m)
{
	json_t *model = json_pack("{s:s,s:n,s:n,s:n,s:n,s:b,s:b,s:b,s:o,s:[]}", "type", "BPE",
		"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
		"fuse_unk", 0, "byte_fallback", 0, "ignore_merges", 0, "vocab", make_vocabulary(),
		"merges");
	json_t *tokenizer = json_pack("{s:s,s:n,s:n,s:[oo],s:n,s:o,s:n,s:o,s:o}", "version", "1.0",
		"truncation", "padding", "added_tokens", special_token(0, "<s>"),
		special_token(1, "</s>"), "normalizer", "pre_tokenizer", byte_level(),
		"post_processor", "decoder", byte_level(), "model", model);

	if (sample_write_json(m, "tokenizer.json", tokenizer) != 0)
		return 1;
	return sample_write_json(m, "tokenizer_config.json",
		json_pack("{s:s,s:s,s:i,s:s}", "bos_token", "<s>", "eos_token", "</s>",
			"model_max_length", 2048, "tokenizer_class", "PreTrainedTokenizerFast"));
}
