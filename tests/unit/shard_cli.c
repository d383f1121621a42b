/*
 * What lib/shard_plan.h, lib/shard_name.h, lib/shard_index.h and lib/size_text.h say, for tests
 * that compare them with Python. Each line of stdin is a JSON array, each answer a line of JSON:
 *
 *     ["plan", SIZES, STORAGE or null, MAX]         [SHARDS, [SHARD, …]]
 *     ["name", BASE, VARIANT or null, NUMBER, COUNT]  NAME or an error number
 *     ["index-name", BASE, VARIANT or null]         NAME or an error number
 *     ["parse-name", NAME]     null or [BASE, VARIANT or null, IS INDEX, NUMBER, COUNT]
 *     ["size", TEXT]                                BYTES or null
 *     ["build", [[TENSOR, SHARD], …], METADATA or null, FILE]    "written" or a reason
 *     ["rebuild", FROM, TO]    "written" or a reason: an index is read, and written anew
 */
#include "lib/shard_index.h"
#include "lib/shard_name.h"
#include "lib/shard_plan.h"
#include "lib/size_text.h"

#include <stdio.h>
#include <string.h>

static _Noreturn void give_up(const char *what)
{
	perror(what);
	exit(1);
}

static void *allocate(size_t n, size_t size)
{
	void *made = calloc(n + 1, size);

	if (!made)
		give_up("calloc");
	return made;
}

/* Exactly so large that a sanitizer sees every byte read too far. */
static char *read_file(const char *name, size_t *ret_len)
{
	FILE *f = fopen(name, "rb");
	char *text;
	long len;

	if (!f || fseek(f, 0, SEEK_END) != 0 || (len = ftell(f)) < 0)
		give_up(name);
	rewind(f);
	text = malloc((size_t)len + !len);
	if (!text || fread(text, 1, (size_t)len, f) != (size_t)len)
		give_up(name);
	fclose(f);
	*ret_len = (size_t)len;
	return text;
}

static void write_file(const char *name, const char *text, size_t len)
{
	FILE *f = fopen(name, "wb");

	if (!f || fwrite(text, 1, len, f) != len || fclose(f) != 0)
		give_up(name);
}

static const char *text_at(const json_t *request, size_t i)
{
	return json_string_value(json_array_get(request, i));
}

static uint64_t number_at(const json_t *request, size_t i)
{
	return (uint64_t)json_integer_value(json_array_get(request, i));
}

static uint64_t *numbers(const json_t *list)
{
	uint64_t *made = allocate(json_array_size(list), sizeof(*made));

	for (size_t i = 0; i < json_array_size(list); i++)
		made[i] = number_at(list, i);
	return made;
}

/* ---- answers ---- */

static json_t *plan(const json_t *request)
{
	const json_t *list = json_array_get(request, 1), *shared = json_array_get(request, 2);
	size_t n = json_array_size(list);
	WFS_AUTO_FREE uint64_t *sizes = numbers(list);
	WFS_AUTO_FREE uint64_t *storage = numbers(shared);
	WFS_AUTO_FREE uint32_t *shard = allocate(n, sizeof(*shard));
	json_t *answer = json_array();
	uint32_t shards;

	if (wfs_shard_plan(sizes, json_is_null(shared) ? NULL : storage, n, number_at(request, 3),
		    shard, &shards) != 0)
		give_up("plan");
	for (size_t i = 0; i < n; i++)
		json_array_append_new(answer, json_integer(shard[i]));
	return json_pack("[I, o]", (json_int_t)shards, answer);
}

static json_t *name_answer(int e, const char *name)
{
	return e ? json_integer(-e) : json_string(name);
}

static json_t *name(const json_t *request)
{
	char buf[WFS_SHARD_NAME_SIZE];
	int e = wfs_shard_name(buf, sizeof(buf), text_at(request, 1), text_at(request, 2),
		(uint32_t)number_at(request, 3), (uint32_t)number_at(request, 4));

	return name_answer(e, buf);
}

static json_t *index_name(const json_t *request)
{
	char buf[WFS_SHARD_NAME_SIZE];
	int e = wfs_shard_index_name(buf, sizeof(buf), text_at(request, 1), text_at(request, 2));

	return name_answer(e, buf);
}

static json_t *parse_name(const json_t *request)
{
	struct wfs_shard_name n;

	if (!wfs_shard_name_parse(text_at(request, 1), &n))
		return json_null();
	return json_pack("[s, s?, b, I, I]", n.base, n.has_variant ? n.variant : NULL,
		(int)n.is_index, (json_int_t)n.number, (json_int_t)n.count);
}

static json_t *size(const json_t *request)
{
	uint64_t bytes;

	if (!wfs_size_parse(text_at(request, 1), &bytes))
		return json_null();
	return json_integer((json_int_t)bytes);
}

static json_t *write_index(
	const struct wfs_index_entry *entries, size_t n, const json_t *metadata, const char *file)
{
	struct wfs_err err = WFS_ERR_INIT;
	WFS_AUTO_FREE char *text = NULL;
	size_t len;

	if (wfs_shard_index_build(entries, n, metadata, &text, &len, &err) != 0)
		return json_string(err.reason ? err.reason : "no memory");
	write_file(file, text, len);
	return json_string("written");
}

static json_t *build(const json_t *request)
{
	const json_t *list = json_array_get(request, 1), *metadata = json_array_get(request, 2);
	size_t n = json_array_size(list);
	WFS_AUTO_FREE struct wfs_index_entry *entries = allocate(n, sizeof(*entries));

	for (size_t i = 0; i < n; i++) {
		const json_t *pair = json_array_get(list, i);

		entries[i] = (struct wfs_index_entry){text_at(pair, 0),
			json_string_length(json_array_get(pair, 0)), text_at(pair, 1)};
	}
	return write_index(
		entries, n, json_is_null(metadata) ? NULL : metadata, text_at(request, 3));
}

static json_t *rebuild(const json_t *request)
{
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_shard_index index;
	size_t len;
	WFS_AUTO_FREE char *text = read_file(text_at(request, 1), &len);
	json_t *answer;

	if (wfs_shard_index_parse(text, len, &index, &err) != 0)
		return json_string(err.reason ? err.reason : "no memory");
	answer = write_index(index.entries, index.n, index.metadata, text_at(request, 2));
	wfs_shard_index_release(&index);
	return answer;
}

/* ---- requests ---- */

static json_t *answer_to(const json_t *request)
{
	static const struct {
		const char *word;
		json_t *(*answer)(const json_t *request);
	} words[] = {
		{"plan", plan},
		{"name", name},
		{"index-name", index_name},
		{"parse-name", parse_name},
		{"size", size},
		{"build", build},
		{"rebuild", rebuild},
	};
	const char *word = text_at(request, 0);

	for (size_t i = 0; word && i < WFS_ARRAY_SIZE(words); i++)
		if (!strcmp(word, words[i].word))
			return words[i].answer(request);
	return NULL;
}

int main(void)
{
	WFS_AUTO_FREE char *line = NULL;
	size_t max = 0;
	ssize_t len;

	while ((len = getline(&line, &max, stdin)) > 0) {
		json_t *request = json_loadb(line, (size_t)len, JSON_ALLOW_NUL, NULL);
		json_t *answer = answer_to(request);

		if (!answer || json_dumpf(answer, stdout, JSON_ENCODE_ANY | JSON_COMPACT) != 0)
			give_up("a request that is none");
		putchar('\n');
		json_decref(answer);
		json_decref(request);
	}
	return 0;
}
