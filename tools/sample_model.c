/*
 * sample_model.c - write a small Llama-shaped model, without Python.
 *
 * What `make run` saves into its mount: config.json, generation_config.json,
 * a byte-level tokenizer, and random weights in several shards with their
 * index, in the form and order of save_pretrained, which transformers loads.
 * The same options give the same bytes.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/safetensors.h"
#include "tools/sample.h"
#include "tools/ui.h"

#define SHARD_BYTES (16u << 20) /* the most that a shard holds, but for one large tensor */
#define CHUNK 65536             /* elements made and written at a time */

/* ---- what the model is made of ---- */

/* Takes over `name`; columns 0: a vector. */
static void add(struct sample *m, char *name, uint64_t rows, uint64_t columns)
{
	struct sample_tensor *t;

	UI_ARRAY_ROOM(m->tensors, m->n, m->room);
	t = &m->tensors[m->n++];
	*t = (struct sample_tensor){ .name = name, .shape = { rows, columns } };
	t->ndim = columns ? 2 : 1;
	t->bytes = rows * (columns ? columns : 1) * wfs_dtype_bits(m->dtype) / 8;
}

static void add_layer(struct sample *m, uint64_t i)
{
	const uint64_t h = m->hidden, inner = sample_inner_size(m);
	const uint64_t kv = sample_kv_heads(m) * SAMPLE_HEAD;
	const struct {
		const char *name;
		uint64_t rows, columns;
	} parts[] = {
		{ "self_attn.q_proj", h, h },
		{ "self_attn.k_proj", kv, h },
		{ "self_attn.v_proj", kv, h },
		{ "self_attn.o_proj", h, h },
		{ "mlp.gate_proj", inner, h },
		{ "mlp.up_proj", inner, h },
		{ "mlp.down_proj", h, inner },
		{ "input_layernorm", h, 0 },
		{ "post_attention_layernorm", h, 0 },
	};

	for (size_t j = 0; j < WFS_ARRAY_SIZE(parts); j++)
		add(m, ui_format("model.layers.%" PRIu64 ".%s.weight", i, parts[j].name),
			parts[j].rows, parts[j].columns);
}

/* Fill shards in the order of the tensors, as save_pretrained plans them. */
static void plan_shards(struct sample *m)
{
	uint64_t used = 0;

	m->n_shards = 1;
	for (size_t i = 0; i < m->n; i++) {
		if (used > 0 && used + m->tensors[i].bytes > SHARD_BYTES) {
			m->n_shards++;
			used = 0;
		}
		m->tensors[i].shard = m->n_shards - 1;
		used += m->tensors[i].bytes;
	}
}

static void plan(struct sample *m)
{
	add(m, ui_format("model.embed_tokens.weight"), SAMPLE_VOCAB, m->hidden);
	for (uint64_t i = 0; i < m->layers; i++)
		add_layer(m, i);
	add(m, ui_format("model.norm.weight"), m->hidden, 0);
	add(m, ui_format("lm_head.weight"), SAMPLE_VOCAB, m->hidden);
	plan_shards(m);
}

static char *shard_name(const struct sample *m, size_t shard)
{
	if (m->n_shards == 1)
		return ui_format("model.safetensors");
	return ui_format("model-%05zu-of-%05zu.safetensors", shard + 1, m->n_shards);
}

/* ---- weights ---- */

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

/* Each tensor has a sequence of its own, whatever the order of writing (FNV-1a of its name). */
static uint64_t seed_of(const struct sample *m, const struct wfs_safetensors_entry *t)
{
	uint64_t hash = UINT64_C(0xcbf29ce484222325) ^ m->seed;

	for (uint32_t i = 0; i < t->name_len; i++)
		hash = (hash ^ (unsigned char)t->name[i]) * UINT64_C(0x100000001b3);
	return hash;
}

/* About normal, mean 0, variance 1: four uniform numbers of 16 bits added up. */
static float normal(uint64_t *state)
{
	uint64_t r = next_random(state);
	double sum = (double)(r & 0xffff) + (double)(r >> 16 & 0xffff) +
		     (double)(r >> 32 & 0xffff) + (double)(r >> 48);

	return (float)((sum / 65535 - 2) * 1.7320508075688772);
}

/* Weights as Llama begins with them: norms are 1, all else is normal with deviation 0.02. */
static float next_weight(const struct wfs_safetensors_entry *t, uint64_t *state)
{
	float x = normal(state);

	return t->ndim == 1 ? 1.0f + 0.01f * x : 0.02f * x;
}

/* n weights as they stand in a file, little endian; returns bytes. */
static size_t make_weights(const struct sample *m, const struct wfs_safetensors_entry *t,
	uint64_t *state, size_t n, uint8_t *to)
{
	size_t at = 0;

	for (size_t i = 0; i < n; i++) {
		float x = next_weight(t, state);
		uint32_t bits;

		memcpy(&bits, &x, sizeof(bits));
		if (m->dtype == WFS_DTYPE_BF16) {
			/* to nearest, ties to even */
			bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
		} else {
			to[at++] = (uint8_t)bits;
			to[at++] = (uint8_t)(bits >> 8);
			bits >>= 16;
		}
		to[at++] = (uint8_t)bits;
		to[at++] = (uint8_t)(bits >> 8);
	}
	return at;
}

static int write_tensor(const struct sample *m, const struct wfs_safetensors_entry *t, int fd)
{
	WFS_AUTO_FREE uint8_t *buf = ui_alloc(CHUNK * 4);
	uint64_t state = seed_of(m, t), left = (t->end - t->begin) * 8 / wfs_dtype_bits(m->dtype);
	int ret = 0;

	while (ret == 0 && left > 0) {
		size_t n = (size_t)WFS_MIN(left, (uint64_t)CHUNK);

		ret = sample_write_all(fd, buf, make_weights(m, t, &state, n, buf));
		left -= n;
	}
	return ret;
}

/* Header and tensors, in the order that the header gives them. */
static int write_shard_bytes(const struct sample *m, struct wfs_safetensors_entry *entries,
	size_t n, int fd)
{
	const struct wfs_safetensors_meta meta = { .key = "format", .value = "pt", .key_len = 6,
		.value_len = 2 };
	WFS_AUTO_FREE uint8_t *header = NULL;
	struct wfs_err err = WFS_ERR_INIT;
	uint64_t data_len;
	size_t len;
	int ret;

	ret = wfs_safetensors_build(entries, n, &meta, 1, &header, &len, &data_len, &err);
	if (ret == 0)
		ret = sample_write_all(fd, header, len);
	for (size_t i = 0; ret == 0 && i < n; i++)
		ret = write_tensor(m, &entries[i], fd);
	return ret;
}

static int write_shard(const struct sample *m, size_t shard)
{
	WFS_AUTO_FREE struct wfs_safetensors_entry *entries = ui_alloc(m->n * sizeof(*entries));
	WFS_AUTO_FREE char *name = shard_name(m, shard);
	WFS_AUTO_FREE char *tmp = NULL;
	size_t n = 0;
	int fd;

	for (size_t i = 0; i < m->n; i++) {
		const struct sample_tensor *t = &m->tensors[i];

		if (t->shard == shard)
			entries[n++] = (struct wfs_safetensors_entry){ .name = t->name,
				.name_len = (uint32_t)strlen(t->name), .ndim = t->ndim,
				.shape = t->shape, .dtype = (uint8_t)m->dtype };
	}
	fd = sample_open(m, &tmp);
	if (fd < 0)
		return 1;
	return sample_finish(m, fd, tmp, name, write_shard_bytes(m, entries, n, fd));
}

static int write_index(const struct sample *m)
{
	json_t *map = json_object(), *root;
	uint64_t total = 0;

	if (m->n_shards == 1)
		return json_decref(map), 0;
	for (size_t i = 0; i < m->n; i++) {
		WFS_AUTO_FREE char *name = shard_name(m, m->tensors[i].shard);

		json_object_set_new(map, m->tensors[i].name, json_string(name));
		total += m->tensors[i].bytes;
	}
	root = json_pack("{s:{s:I,s:I},s:o}", "metadata", "total_parameters",
		(json_int_t)(total * 8 / wfs_dtype_bits(m->dtype)), "total_size", (json_int_t)total,
		"weight_map", map);
	return sample_write_json(m, "model.safetensors.index.json", root);
}

/* ---- the command ---- */

static int write_model(const struct sample *m)
{
	if (mkdir(m->dir, 0777) < 0 && errno != EEXIST)
		return sample_fail(m->dir, errno);
	if (sample_write_config(m) != 0 || sample_write_generation_config(m) != 0)
		return 1;
	for (size_t shard = 0; shard < m->n_shards; shard++)
		if (write_shard(m, shard) != 0)
			return 1;
	return write_index(m) != 0 || sample_write_tokenizer(m) != 0;
}

static int usage(FILE *f)
{
	fputs("usage: sample-model [--seed N] [--layers N] [--hidden N] [--dtype F32|BF16] DIR\n"
	      "\n"
	      "Writes a Llama-shaped model with random weights to DIR. The same options give\n"
	      "the same bytes. Defaults: seed 1, 4 layers, hidden 384 (a multiple of 64), F32:\n"
	      "about 50 MB in 4 shards.\n",
		f);
	return f == stdout ? 0 : 2;
}

/* 0, or -1 if `text` is no number from 1 to max. */
static int parse_number(const char *text, uint64_t max, uint64_t *ret)
{
	char *end;

	errno = 0;
	*ret = strtoull(text, &end, 10);
	return errno || *end || *text < '0' || *text > '9' || *ret < 1 || *ret > max ? -1 : 0;
}

/* 0: go on; else the exit status + 1. */
static int parse_arguments(int argc, char **argv, struct sample *m)
{
	static const struct option options[] = {
		{ "seed", required_argument, NULL, 's' },
		{ "layers", required_argument, NULL, 'l' },
		{ "hidden", required_argument, NULL, 'H' },
		{ "dtype", required_argument, NULL, 'd' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int opt, bad = 0;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (opt == 'h')
			return usage(stdout) + 1;
		if (opt == 's')
			bad |= parse_number(optarg, INT64_MAX, &m->seed);
		else if (opt == 'l')
			bad |= parse_number(optarg, 1000, &m->layers);
		else if (opt == 'H')
			bad |= parse_number(optarg, 65536, &m->hidden) || m->hidden % SAMPLE_HEAD;
		else if (opt == 'd')
			bad |= !wfs_dtype_find(optarg, strlen(optarg), &m->dtype) ||
			       (m->dtype != WFS_DTYPE_F32 && m->dtype != WFS_DTYPE_BF16);
		else
			bad = 1;
	}
	if (bad || argc - optind != 1)
		return usage(stderr) + 1;
	m->dir = argv[optind];
	return 0;
}

int main(int argc, char **argv)
{
	struct sample m = { .seed = 1, .layers = 4, .hidden = 384, .dtype = WFS_DTYPE_F32 };
	int ret = parse_arguments(argc, argv, &m);

	if (ret != 0)
		return ret - 1;
	plan(&m);
	ret = write_model(&m);
	for (size_t i = 0; i < m.n; i++)
		free(m.tensors[i].name);
	free(m.tensors);
	return ret;
}
